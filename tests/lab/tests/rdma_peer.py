# SPDX-License-Identifier: GPL-2.0-or-later
"""A peer that knows rdma_cm and nothing else: it connects with any private data."""

import ctypes
import hashlib
import select
import socket
import struct

PS_TCP = 0x0106
ADDR_RESOLVED, ROUTE_RESOLVED, CONNECT_RESPONSE, REJECTED = 0, 2, 5, 8
ENOENT, EPROTO, EPROTONOSUPPORT = 2, 71, 93
PRIVATE_MAX = 56

lib = ctypes.CDLL("librdmacm.so.1", use_errno=True)


class ConnParam(ctypes.Structure):
    _fields_ = [("private_data", ctypes.c_void_p), ("private_data_len", ctypes.c_uint8),
                ("responder_resources", ctypes.c_uint8), ("initiator_depth", ctypes.c_uint8),
                ("flow_control", ctypes.c_uint8), ("retry_count", ctypes.c_uint8),
                ("rnr_retry_count", ctypes.c_uint8), ("srq", ctypes.c_uint8), ("qp_num", ctypes.c_uint32)]


class Event(ctypes.Structure):
    _fields_ = [("id", ctypes.c_void_p), ("listen_id", ctypes.c_void_p), ("event", ctypes.c_int),
                ("status", ctypes.c_int), ("param", ConnParam)]


class Channel(ctypes.Structure):
    _fields_ = [("fd", ctypes.c_int)]


lib.rdma_create_event_channel.restype = ctypes.POINTER(Channel)


def hello(export, version=1, magic=b"SMRD", zero=0):
    """A sound one, unless told otherwise."""
    return struct.pack(">4sHH", magic, version, zero) + hashlib.sha256(export.encode()).digest()


def must(result, what):
    if result:
        raise OSError(ctypes.get_errno(), what)


class Peer:
    """A connection attempt; .event is how it ended, .private_data what came along."""

    def __init__(self, address, private_data):
        self.channel = lib.rdma_create_event_channel()
        self.id = ctypes.c_void_p()
        must(lib.rdma_create_id(self.channel, ctypes.byref(self.id), None, PS_TCP), "rdma_create_id")
        host, port = address.split(":")[1:]
        sockaddr = struct.pack("=H", socket.AF_INET) + struct.pack(">H", int(port)) + socket.inet_aton(host) + bytes(8)
        must(lib.rdma_resolve_addr(self.id, None, sockaddr, 5000), "rdma_resolve_addr")
        self.wait(ADDR_RESOLVED)
        must(lib.rdma_resolve_route(self.id, 5000), "rdma_resolve_route")
        self.wait(ROUTE_RESOLVED)
        data = ctypes.create_string_buffer(private_data, max(len(private_data), 1))
        # Without a queue pair of its own: the number is made up.
        param = ConnParam(private_data=ctypes.cast(data, ctypes.c_void_p), private_data_len=len(private_data),
                          initiator_depth=1, retry_count=1, qp_num=77)
        must(lib.rdma_connect(self.id, ctypes.byref(param)), "rdma_connect")
        self.event, self.private_data = self.wait()

    def wait(self, wanted=None, seconds=20):
        if not select.select([self.channel.contents.fd], [], [], seconds)[0]:
            raise AssertionError("rdma_cm said nothing in %d s" % seconds)
        event = ctypes.POINTER(Event)()
        must(lib.rdma_get_cm_event(self.channel, ctypes.byref(event)), "rdma_get_cm_event")
        kind, param = event.contents.event, event.contents.param
        data = ctypes.string_at(param.private_data, param.private_data_len) if param.private_data else b""
        lib.rdma_ack_cm_event(event)
        assert wanted is None or kind == wanted, (kind, wanted)
        return kind, data

    def refusal(self):
        """The errno it was refused with; None: it was not."""
        if self.event != REJECTED:
            return None
        magic, version, zero, number = struct.unpack(">4sHHI", self.private_data[:12])
        assert (magic, version, zero) == (b"SMRD", 1, 0), self.private_data
        return number

    def close(self):
        lib.rdma_destroy_id(self.id)
        lib.rdma_destroy_event_channel(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
