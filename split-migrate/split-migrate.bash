# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# Bash completion for split-migrate: the program knows its verbs, options and domains.

_split_migrate()
{
    local line words cur before
    # Not COMP_WORDS: bash divides words at colons and equal signs, the program does not.
    read -ra words <<<"${COMP_LINE:0:COMP_POINT}"
    [[ ${COMP_LINE:COMP_POINT-1:1} == ' ' ]] && words+=("")
    cur=${words[-1]}
    before=${cur%"${cur##*[:=]}"}
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == @files ]]; then
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        else
            [[ $line == *: || $line == */ ]] && compopt -o nospace
            COMPREPLY+=("${line#"$before"}")
        fi
    done < <("$1" complete -- "${words[@]:1}" 2>/dev/null)
}

complete -F _split_migrate split-migrate
