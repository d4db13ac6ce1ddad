"""Messages between a caller and the processes that work for it: length-prefixed JSON and safetensors on a socket.

A message is two lengths, JSON, and a safetensors blob of the tensors that the JSON names. Reading one runs nothing of
what was sent: there is no pickle. Before the first message both ends prove that they know one secret, which is never
sent: HMAC-SHA256 over the other's nonce. Knows sockets and tensors; knows no engine.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

PROTOCOL = 1
LENGTHS = struct.Struct("!QQ")
# Bytes of JSON that a message may have, of a stranger's first message, and bytes that are sent or read at once.
MOST_TEXT, FIRST_TEXT, CHUNK = 1 << 28, 1 << 12, 1 << 20


@dataclass(frozen=True)
class Message:
    """What is told, plain JSON, and the tensors that it names."""

    told: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def encode(self) -> tuple[bytes, bytes]:
        """Lengths and JSON, and the blob."""
        text = json.dumps(self.told).encode()
        blob = save({name: alone(x) for name, x in self.tensors.items()}) if self.tensors else b""
        return LENGTHS.pack(len(text), len(blob)) + text, blob


class ProtocolError(RuntimeError):
    """What came over a connection is no message, or its sender does not know the secret."""


def alone(x: Tensor) -> Tensor:
    """A tensor on the host in memory of its own, as safetensors takes it."""
    x = x.detach().cpu().contiguous()
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


def decode(text: bytes, blob: bytes) -> Message:
    """Raises ProtocolError on what is no message."""
    try:
        return Message(json.loads(text), load(blob) if blob else {})
    except ValueError as error:
        raise ProtocolError(f"this is no message: {error}") from None


def send(link: socket.socket, message: Message) -> None:
    """Send a message; a timeout of the socket holds for every CHUNK of it."""
    for part in message.encode():
        for i in range(0, len(part), CHUNK):
            link.sendall(memoryview(part)[i : i + CHUNK])


def receive(link: socket.socket, most: int = MOST_TEXT) -> Message:
    """Wait for one message.

    Args:
        most: bytes of JSON that it may have; of tensors too, if they are fewer than MOST_TEXT.

    Raises:
        EOFError: the other end is closed.
        ProtocolError: it is no message, or too long.
    """
    sizes = checked(LENGTHS.unpack(exactly(link, LENGTHS.size)), most)
    text, blob = (exactly(link, size) for size in sizes)
    return decode(text, blob)


def checked(sizes: tuple[int, int], most: int = MOST_TEXT) -> tuple[int, int]:
    """Lengths of a message that may be read."""
    if sizes[0] > most or (most < MOST_TEXT and sizes[1] > 0):
        raise ProtocolError(f"a message of {sizes[0]:,} + {sizes[1]:,} bytes: expected at most {most:,} of JSON here")
    return sizes


def exactly(link: socket.socket, size: int) -> bytes:
    """The next `size` bytes."""
    parts = bytearray()
    while len(parts) < size:
        part = link.recv(min(CHUNK, size - len(parts)))
        if not part:
            raise EOFError("the connection was closed")
        parts += part
    return bytes(parts)


class Inbox:
    """Messages out of pieces of a stream, as they come."""

    def __init__(self) -> None:
        self.pieces = bytearray()

    def add(self, piece: bytes) -> Iterator[Message]:
        """The messages that this piece completes."""
        self.pieces += piece
        while len(self.pieces) >= LENGTHS.size:
            text, blob = checked(LENGTHS.unpack_from(self.pieces))
            middle, end = LENGTHS.size + text, LENGTHS.size + text + blob
            if len(self.pieces) < end:
                return
            whole = bytes(self.pieces[LENGTHS.size : middle]), bytes(self.pieces[middle:end])
            del self.pieces[:end]
            yield decode(*whole)


def proof(secret: bytes, who: str, nonce: str) -> str:
    """What only those can say who know the secret."""
    return hmac.new(secret, f"{who} {nonce}".encode(), "sha256").hexdigest()


def admit(link: socket.socket, secret: bytes) -> int:
    """The caller's side of the first words: the rank of who has called.

    Raises:
        ProtocolError: it does not know the secret, or speaks another protocol.
        EOFError, OSError: it went away, or did not answer before the socket's timeout.
    """
    nonce = secrets.token_hex(16)
    send(link, Message({"protocol": PROTOCOL, "nonce": nonce}))
    told = receive(link, FIRST_TEXT).told
    rank, theirs = told.get("rank"), told.get("nonce")
    if not isinstance(rank, int) or not isinstance(theirs, str):
        raise ProtocolError("a caller did not say who it is")
    if not hmac.compare_digest(str(told.get("proof")), proof(secret, f"rank {rank}", nonce)):
        raise ProtocolError("a caller does not know this run's secret")
    send(link, Message({"proof": proof(secret, "caller", theirs)}))
    return rank


def call(address: tuple[str, int], secret: bytes, rank: int, timeout: float) -> socket.socket:
    """A rank's side: a connection to the caller, which has proved who it is.

    Raises:
        ProtocolError: it does not know the secret, or speaks another protocol.
        OSError: nobody answers there.
    """
    link = socket.create_connection(address, timeout)
    try:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        introduce(link, secret, rank)
        link.settimeout(None)
    except BaseException:
        link.close()
        raise
    return link


def introduce(link: socket.socket, secret: bytes, rank: int) -> None:
    """A rank's side of the first words."""
    told, nonce = receive(link, FIRST_TEXT).told, secrets.token_hex(16)
    if told.get("protocol") != PROTOCOL:
        raise ProtocolError(f"the caller speaks protocol {told.get('protocol')}, rank {rank} speaks {PROTOCOL}")
    own = proof(secret, f"rank {rank}", str(told.get("nonce")))
    send(link, Message({"rank": rank, "nonce": nonce, "proof": own}))
    if not hmac.compare_digest(str(receive(link, FIRST_TEXT).told.get("proof")), proof(secret, "caller", nonce)):
        raise ProtocolError("who listens there does not know this run's secret")


def plain(told: Mapping[str, Any]) -> Message:
    """A message without tensors."""
    return Message(dict(told))
