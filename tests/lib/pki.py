# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates and keys for tests: made by certtool and psktool, in libvirt's layout and QEMU's."""

import os
import shutil
import tempfile

from checks import command, require_tool

ALIASES = {"cacert.pem": "ca-cert.pem", "servercert.pem": "server-cert.pem",
           "serverkey.pem": "server-key.pem", "clientcert.pem": "client-cert.pem",
           "clientkey.pem": "client-key.pem"}


class Pki:
    """An authority and what it signed; every identity is a folder that --tls-certificates takes."""

    def __init__(self):
        require_tool("certtool")
        require_tool("psktool")
        self.folder = tempfile.mkdtemp(prefix="pki-")
        self.authority = self._authority("test authority")

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _authority(self, name):
        where = tempfile.mkdtemp(prefix="ca-", dir=self.folder)
        self._key(os.path.join(where, "key.pem"))
        self._template(where, ["cn = %s" % name, "ca", "cert_signing_key", "expiration_days = 30"])
        command("certtool", "--generate-self-signed", "--load-privkey", os.path.join(where, "key.pem"),
                "--template", os.path.join(where, "template"), "--outfile",
                os.path.join(where, "cert.pem"))
        return where

    @staticmethod
    def _key(path):
        command("certtool", "--generate-privkey", "--key-type", "ecdsa", "--curve", "secp256r1",
                "--outfile", path)

    @staticmethod
    def _template(where, lines):
        with open(os.path.join(where, "template"), "w") as file:
            file.write("\n".join(lines) + "\n")

    def identity(self, names=("localhost",), addresses=("127.0.0.1", "::1"), client=True,
                 server=True, expired=None, signer=None, trusted=None):
        """
        A folder with certificates for one host.  expired: "server" or "client"; signer: another
        authority's folder; trusted: whom the host trusts, if not who signed.
        """
        where = tempfile.mkdtemp(prefix="id-", dir=self.folder)
        signer = signer or self.authority
        shutil.copy(os.path.join(trusted or signer, "cert.pem"), os.path.join(where, "cacert.pem"))
        for role, wanted in (("server", server), ("client", client)):
            if not wanted:
                continue
            dates = (['activation_date = "2020-01-01 00:00:00"', 'expiration_date = "2020-01-02 00:00:00"']
                     if expired == role else ["expiration_days = 30"])
            self._template(where, ["cn = %s" % names[0], "tls_www_%s" % role, "signing_key"] + dates +
                           ["dns_name = %s" % name for name in names] +
                           ["ip_address = %s" % address for address in addresses])
            key, cert = (os.path.join(where, role + end) for end in ("key.pem", "cert.pem"))
            self._key(key)
            command("certtool", "--generate-certificate", "--load-privkey", key,
                    "--load-ca-certificate", os.path.join(signer, "cert.pem"), "--load-ca-privkey",
                    os.path.join(signer, "key.pem"), "--template", os.path.join(where, "template"),
                    "--outfile", cert)
        for ours, theirs in ALIASES.items():
            if os.path.exists(os.path.join(where, ours)):
                os.symlink(ours, os.path.join(where, theirs))
        return where

    def stranger(self, **options):
        """An identity signed by an authority nobody knows."""
        return self.identity(signer=self._authority("stranger"), trusted=self.authority, **options)

    def psk(self, *users):
        """A file of keys."""
        path = os.path.join(tempfile.mkdtemp(prefix="psk-", dir=self.folder), "keys.psk")
        for user in users:
            command("psktool", "--username", user, "--keysize", "32", "--pskfile", path)
        return path
