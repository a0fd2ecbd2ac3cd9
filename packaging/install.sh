#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# install.sh install|uninstall BUILD - put everything below $DESTDIR$PREFIX, or take it away again
#
# One list serves both, so that nothing is left behind. Configuration in /etc that is there already is
# the operator's: it is neither replaced nor removed.
set -eu
cd "$(dirname "$0")/.."
action=$1 build=$2
: "${DESTDIR:=}" "${PREFIX:=/usr/local}" "${SYSCONFDIR:=/etc}"
: "${UNITDIR:=$PREFIX/lib/systemd/system}"

# MODE SOURCE TARGET
list() {
    for program in split-migrate predictor-replay; do
        echo "755 $build/bin/$program $PREFIX/bin/$program"
    done
    for program in uffd-pager subhost-server; do
        echo "755 $build/bin/$program $PREFIX/sbin/$program"
        echo "644 packaging/$program.service $UNITDIR/$program.service"
        echo "644 packaging/$program.sysusers $PREFIX/lib/sysusers.d/$program.conf"
        echo "644 packaging/$program.default $SYSCONFDIR/default/$program"
    done
    echo "644 packaging/run-subhost-regions.mount $UNITDIR/run-subhost-regions.mount"
    echo "644 packaging/uffd-pager.tmpfiles $PREFIX/lib/tmpfiles.d/uffd-pager.conf"
    echo "644 packaging/60-uffd-pager.rules $PREFIX/lib/udev/rules.d/60-uffd-pager.rules"
    for page in */*.[158]; do
        echo "644 $page $PREFIX/share/man/man${page##*.}/${page##*/}"
    done
    for file in README.md CHANGELOG.md docs/*.md split-migrate/sample.policy; do
        echo "644 $file $PREFIX/share/doc/split-migrate/${file##*/}"
    done
    completions=$PREFIX/share/bash-completion/completions
    echo "644 split-migrate/split-migrate.bash $completions/split-migrate"
    echo "644 common/daemons.bash $completions/uffd-pager"
    echo "644 common/daemons.bash $completions/subhost-server"
}

list | while read -r mode source target; do
    case $action:$target in
    install:"$SYSCONFDIR"/*)
        [ -e "$DESTDIR$target" ] || install -D -m "$mode" "$source" "$DESTDIR$target"
        ;;
    install:*.service)
        install -d "$DESTDIR${target%/*}"
        sed "s,@SBINDIR@,$PREFIX/sbin," "$source" >"$DESTDIR$target"
        chmod "$mode" "$DESTDIR$target"
        ;;
    install:*) install -D -m "$mode" "$source" "$DESTDIR$target" ;;
    uninstall:"$SYSCONFDIR"/*) ;;
    uninstall:*)
        rm -f "$DESTDIR$target"
        # Folders of ours alone; those that others use, too, are not empty.
        case $target in */doc/split-migrate/*) rmdir "$DESTDIR${target%/*}" 2>/dev/null || true ;; esac
        ;;
    *)
        echo "install.sh: '$action' is neither install nor uninstall" >&2
        exit 2
        ;;
    esac
done
