/* SPDX-License-Identifier: GPL-2.0-or-later */
/* policy_internal.h - what policy.c and policy_file.c share: the table of keys */
#ifndef COMMON_POLICY_INTERNAL_H
#define COMMON_POLICY_INTERNAL_H

#include <stddef.h>

#include "common/policy.h"

#define POLICY_SUBHOST "subhost"

enum policy_type { POLICY_SIZE, POLICY_MARK, POLICY_NUMBER, POLICY_URI, POLICY_PREDICTOR, POLICY_LOSS,
                   POLICY_TEXT, POLICY_FALLBACK, POLICY_REDUNDANCY, POLICY_DIRECTORY,
                   POLICY_COMPRESS };

struct policy_key {
    const char *section;
    const char *name;
    size_t offset; /* in struct policy, or in struct policy_subhost */
    uint64_t least;
    uint64_t most;
    enum policy_type type;
    bool power_of_two;
};

extern const struct policy_key policy_keys[];
extern const size_t policy_n_keys;

/**
 * policy_set() - parse @value and store it
 * @subhost: whose key it is; NULL for a key of the policy
 * Return: 0, or -EINVAL with a sentence in @reason.
 */
int policy_set(struct policy *policy, struct policy_subhost *subhost, const struct policy_key *key,
               const char *value, struct reason *reason);

#endif
