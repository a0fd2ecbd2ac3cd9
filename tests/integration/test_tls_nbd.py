#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Page data over TLS: our client and others', with good credentials and with bad ones."""

import json
import os
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from checks import command, expect, main, require_tool
from nbdpeer import ERR_INVALID, IHAVEOPT, OPT_GO, OPT_LIST, OPT_STARTTLS, Closed, NbdError, NbdPeer
from pki import Pki
from subhost import MIB, NBDTOOL, PAGE, Subhost

ERR_TLS_REQD = 0x80000005
PATTERN = bytes(range(256)) * 16


def tls_host(*options):
    """A sub-host that serves pages on 127.0.0.1 with TLS, and has a region r."""
    host = Subhost("--listen", "tls:127.0.0.1:0", *options)
    with host.control() as control:
        host.tls = control.call("query-status")["data"][2]
        control.call("region-create", name="r", size=4 * MIB)
        control.call("region-keep", name="r")
    host.port = int(host.tls.rsplit(":", 1)[1])
    return host


def tool(host, *words, address=None, ok=True, **environment):
    """nbdtool with this TLS identity; returns what it wrote."""
    environment = dict(os.environ, **{"TLS_" + key.upper(): value for key, value in environment.items()})
    done = command(NBDTOOL, address or host.tls, "r", *words, ok=ok, env=environment,
                   **({"input": PATTERN} if words[0] == "write" else {}))
    return done.stdout if ok else done.stderr.decode()


def round_trip(host, **identity):
    tool(host, "write", 8192, PAGE, **identity)
    assert tool(host, "read", 8192, PAGE, **identity) == PATTERN


def test_certificates():
    with Pki() as pki:
        good = pki.identity()
        with tls_host("--tls-certificates", good) as host:
            round_trip(host, certificates=good)
            round_trip(host, certificates=pki.identity(server=False))


def test_keys():
    with Pki() as pki:
        keys = pki.psk("alice", "bob")
        with tls_host("--tls-psk", keys) as host:
            round_trip(host, psk=keys)
            round_trip(host, psk=keys, username="bob")
            assert "no key of user 'carol'" in tool(host, "info", ok=False, psk=keys, username="carol")
            assert "TLS" in tool(host, "info", ok=False, psk=pki.psk("alice"))
            assert "TLS" in tool(host, "info", ok=False, psk=pki.psk("mallory"))
            assert "TLS" in tool(host, "info", ok=False, certificates=pki.identity())
            round_trip(host, psk=keys)


def test_bad_clients_are_refused():
    with Pki() as pki:
        good = pki.identity()
        with tls_host("--tls-certificates", good) as host:
            said = tool(host, "info", ok=False, certificates=pki.identity(server=False, client=False))
            assert "the peer refuses our TLS" in said and "required" in said, said
            said = tool(host, "info", ok=False, certificates=pki.stranger())
            assert "the peer refuses our TLS" in said, said
            said = tool(host, "info", ok=False, certificates=pki.identity(expired="client"))
            assert "the peer refuses our TLS" in said, said
            # A server's certificate is none of a client.
            odd = pki.identity()
            for end in ("key.pem", "cert.pem"):
                os.replace(os.path.join(odd, "server" + end), os.path.join(odd, "client" + end))
            assert "the peer refuses our TLS" in tool(host, "info", ok=False, certificates=odd)
            assert "TLS" in tool(host, "info", ok=False, psk=pki.psk("alice"))
            assert "a connection was refused" in host.log()
            round_trip(host, certificates=good)


def test_bad_servers_are_refused():
    with Pki() as pki:
        good = pki.identity()
        for server, words in (
                (pki.stranger(), "the peer's certificate is refused"),
                (pki.identity(names=["elsewhere.example"], addresses=[]), "does not match"),
                (pki.identity(addresses=["192.0.2.1"]), "does not match"),
                (pki.identity(expired="server"), "expired")):
            with tls_host("--tls-certificates", server) as host:
                said = tool(host, "info", ok=False, certificates=good)
                assert words in said, said


def test_name_or_address():
    with Pki() as pki:
        good = pki.identity(addresses=[])
        with tls_host("--tls-certificates", good) as host:
            where = "tls:localhost:%d" % host.port
            assert tool(host, "read", 0, PAGE, address=where, certificates=good) == bytes(PAGE)
            assert "does not match" in tool(host, "info", ok=False, certificates=good)


def test_renewed_certificates_are_used_at_once():
    with Pki() as pki:
        identity, other = pki.identity(expired="server"), pki.identity()
        with tls_host("--tls-certificates", identity) as host:
            assert "expired" in tool(host, "info", ok=False, certificates=other)
            for end in ("key.pem", "cert.pem"):
                os.replace(os.path.join(other, "server" + end), os.path.join(identity, "server" + end))
            round_trip(host, certificates=identity)


def test_plaintext_against_tls():
    with Pki() as pki:
        good = pki.identity()
        with tls_host("--tls-certificates", good) as host:
            plain = "tcp:127.0.0.1:%d" % host.port
            assert "the server wants TLS" in tool(host, "info", address=plain, ok=False)
            with NbdPeer(plain) as peer:
                peer.greet()
                for option in (OPT_GO, OPT_LIST, 8, 10, 77):
                    assert expect(NbdError, peer.option, option, b"").number == ERR_TLS_REQD
                assert expect(NbdError, peer.option, OPT_STARTTLS, b"x").number == ERR_INVALID
            # What is sent behind STARTTLS, in plaintext, must never be taken for part of what follows.
            with NbdPeer(plain) as peer:
                peer.greet()
                peer.raw(2 * (IHAVEOPT + OPT_STARTTLS.to_bytes(4, "big") + bytes(4)))
                expect(Closed, peer.receive, 1000)
            # The other way round: a client that wants TLS does not do without.
            said = tool(host, "info", address="tls:" + host.tcp[4:], ok=False, certificates=good)
            assert "the server does not begin TLS" in said, said


def test_stalled_and_garbage_handshakes():
    with Pki() as pki:
        good = pki.identity()
        with tls_host("--tls-certificates", good) as host:
            peers = []
            for garbage in (b"", b"\x16\x03\x01", b"\x16\x03\x01\xff\xff", b"GET / HTTP/1.0\r\n\r\n",
                            bytes(5000), b"\x15\x03\x03\x00\x02\x02\x28"):
                peer = NbdPeer("tcp:127.0.0.1:%d" % host.port)
                peer.greet()
                peer.option(OPT_STARTTLS, b"")
                peer.raw(garbage)
                peers.append(peer)
            round_trip(host, certificates=good)
            for peer in peers:
                peer.sock.settimeout(15)
                peer.until_closed()
                peer.close()
            round_trip(host, certificates=good)


def uri(host, export, pki_folder=None, keys=None, user=None):
    what = "tls-certificates=" + pki_folder if pki_folder else "tls-psk-file=" + keys
    return "nbds://%s127.0.0.1:%d/%s?%s" % (user + "@" if user else "", host.port, export, what)


def test_libnbd():
    require_tool("nbdcopy")
    with Pki() as pki:
        good, keys = pki.identity(), pki.psk("alice")
        for options, where in ((("--tls-certificates", good), {"pki_folder": good}),
                               (("--tls-psk", keys), {"keys": keys, "user": "alice"})):
            with tls_host(*options) as host:
                info = json.loads(command("nbdinfo", "--json", uri(host, "r", **where)).stdout)
                assert info["TLS"] is True and info["exports"][0]["export-size"] == 4 * MIB, info
                image = os.path.join(host.folder, "image")
                with open(image, "wb") as file:
                    file.write(os.urandom(4 * MIB))
                command("nbdcopy", "--connections=2", image, uri(host, "r", **where))
                down = os.path.join(host.folder, "down")
                command("nbdcopy", uri(host, "r", **where), down)
                command("cmp", image, down)
                command("nbdinfo", "nbd://127.0.0.1:%d/r" % host.port, ok=False)


def test_qemu_img():
    require_tool("qemu-img")
    with Pki() as pki:
        good = pki.identity()
        with tls_host("--tls-certificates", good) as host:
            image = os.path.join(host.folder, "image")
            with open(image, "wb") as file:
                file.write(os.urandom(4 * MIB))
            command("qemu-img", "convert", "-n", "-f", "raw", "--object",
                    "tls-creds-x509,id=t,dir=%s,endpoint=client" % good, "--target-image-opts", image,
                    "driver=nbd,host=127.0.0.1,port=%d,export=r,tls-creds=t" % host.port)
            assert tool(host, "read", 0, 4 * MIB, certificates=good) == open(image, "rb").read()


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_our_client_and_qemu_nbd():
    require_tool("qemu-nbd")
    with Pki() as pki:
        good = pki.identity()
        image = os.path.join(pki.folder, "image")
        with open(image, "wb") as file:
            file.truncate(4 * MIB)
        port, pid = free_port(), os.path.join(pki.folder, "pid")
        command("qemu-nbd", "--fork", "--pid-file", pid, "--object",
                "tls-creds-x509,id=t,dir=%s,endpoint=server,verify-peer=yes" % good, "--tls-creds", "t",
                "-f", "raw", "-x", "r", "-b", "127.0.0.1", "-p", port, "-t", image)
        try:
            address = "tls:127.0.0.1:%d" % port
            tool(None, "write", 8192, PAGE, address=address, certificates=good)
            assert tool(None, "read", 8192, PAGE, address=address, certificates=good) == PATTERN
            assert "the server wants TLS" in tool(None, "info", address="tcp:" + address[4:], ok=False)
        finally:
            with open(pid) as file:
                os.kill(int(file.read()), 15)


def test_our_client_and_nbdkit():
    require_tool("nbdkit")
    with Pki() as pki:
        good, keys, port = pki.identity(), pki.psk("alice"), free_port()
        for options, identity in ((["--tls-certificates=" + good, "--tls-verify-peer"], {"certificates": good}),
                                  (["--tls-psk=" + keys], {"psk": keys})):
            server = subprocess.Popen(["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "--tls=require",
                                       "-P", os.path.join(pki.folder, "pid"), "--exit-with-parent", "-e", "r"] + options +
                                      ["memory", "4M"])
            try:
                while not os.path.exists(os.path.join(pki.folder, "pid")):
                    assert server.poll() is None
                address = "tls:127.0.0.1:%d" % port
                tool(None, "write", 8192, PAGE, address=address, **identity)
                assert tool(None, "read", 8192, PAGE, address=address, **identity) == PATTERN
            finally:
                server.kill()
                server.wait()
                os.unlink(os.path.join(pki.folder, "pid"))


main(globals())
