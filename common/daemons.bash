# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# Bash completion for uffd-pager and subhost-server: the options that --help shows, else files.

_split_migrate_daemon()
{
    [[ $2 == -* ]] || return
    mapfile -t COMPREPLY < <(compgen -W "$("$1" --help | grep -Eo -- '--[a-z-]+' | sort -u)" -- "$2")
}

complete -o default -F _split_migrate_daemon uffd-pager subhost-server
