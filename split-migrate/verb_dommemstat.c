// SPDX-License-Identifier: GPL-2.0-or-later
/* verb_dommemstat.c - a guest's memory in figures, as virsh dommemstat gives them: name value */
#include <stdio.h>
#include <string.h>

#include "split-migrate/memstat.h"
#include "split-migrate/output.h"
#include "split-migrate/verbs.h"

const struct option_def verb_dommemstat_options[] = {
    OPTION_PAGER,
    {"interval", 0, "SECONDS", "measure the rates over so long (default 1)"},
    OPTION_JSON("print one JSON object, sizes in bytes"),
    OPTIONS_END,
};

static void dommemstat_line(const char *name, const char *host, uint64_t value)
{
    printf("%s%s%s %llu\n", name, host ? "." : "", host ? host : "", (unsigned long long)value);
}

static void dommemstat_show(const struct memstat *stat)
{
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {
        {"budget", stat->budget / KIB},
        {"remote", stat->remote / KIB},
        {"at_risk", stat->at_risk / KIB},
        {"page_in", stat->page_ins},
        {"page_in_rate", stat->page_in_rate},
        {"prefetch", stat->prefetched},
        {"prefetch_rate", stat->prefetch_rate},
        {"page_out", stat->page_outs},
        {"page_out_rate", stat->page_out_rate},
        {"fault_p50_us", stat->fault_p50_us},
        {"fault_p99_us", stat->fault_p99_us},
        {"fault_max_us", stat->fault_max_us},
        {"lost", stat->lost_pages},
    };

    dommemstat_line("actual", NULL, stat->ram / KIB);
    dommemstat_line("present", NULL, stat->present / KIB);
    dommemstat_line("resident", NULL, stat->resident / KIB);
    for (size_t i = 0; stat->split && i < sizeof(rows) / sizeof(rows[0]); i++) {
        dommemstat_line(rows[i].name, NULL, rows[i].value);
    }
    for (unsigned i = 0; i < stat->n_subhosts; i++) {
        dommemstat_line("remote", stat->subhost[i].name, stat->subhost[i].remote / KIB);
        dommemstat_line("at_risk", stat->subhost[i].name, stat->subhost[i].at_risk / KIB);
        dommemstat_line("stored", stat->subhost[i].name, stat->subhost[i].stored / KIB);
    }
}

int verb_dommemstat(const struct arguments *arguments)
{
    static struct memstat stat; /* it has all sub-hosts in it */
    struct reason reason = {""};
    struct pager pager;
    unsigned ms;

    int status = verbs_interval(arguments, &ms);
    if (status != EXIT_OK) {
        return status;
    }
    status = verbs_look(&pager, arguments);
    if (status == EXIT_OK && memstat_measure(&pager, ms, &stat, &reason) < 0) {
        output_error("%s", reason.text);
        status = EXIT_UNCHANGED;
    }
    if (status == EXIT_OK && options_get(arguments, "json")) {
        output_json(memstat_json(&stat));
    } else if (status == EXIT_OK) {
        dommemstat_show(&stat);
    }
    pager_close(&pager);
    return status;
}
