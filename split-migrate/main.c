// SPDX-License-Identifier: GPL-2.0-or-later
/* split-migrate - move a guest to a main host and sub-hosts that share its memory */
#include "split-migrate/verbs.h"

int main(int argc, char **argv)
{
    return verbs_main(argc, argv);
}
