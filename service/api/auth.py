"""Who asks, and what they may do: bearer tokens with a role, of which only hashes are kept.

A token has 256 bits from the system's generator, so its SHA-256 can be guessed no more than the
token itself; scrypt or bcrypt would guard weak secrets, which these are not, and would cost a tenth
of a second for each request, which anybody could ask for.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import threading
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, ValidationError

from laminar.config.base import FrozenModel
from laminar.errors import ConfigError
from laminar.storage import write_durably
from service.jobs.models import now

Role = Literal["read", "submit", "admin"]
"""`read` looks, `submit` also submits and rules over its own jobs, `admin` over all."""

ROLES: tuple[Role, ...] = ("read", "submit", "admin")
PREFIX = "lam_"
UserName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]


class User(FrozenModel):
    """Who asks."""

    name: UserName = Field(description="Owner of the jobs that are submitted with this token.")
    role: Role = Field(description="read, submit or admin.")

    def may(self, role: Role) -> bool:
        """Whether the user may do what takes this role."""
        return ROLES.index(self.role) >= ROLES.index(role)


LOCAL_USER = User(name="local", role="admin")
"""Whoever reaches a service without tokens, which listens on the loopback address alone."""


class StoredToken(FrozenModel):
    """What is kept of a token."""

    id: str
    user: User
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created_at: AwareDatetime


class TokenFile(FrozenModel):
    """The file of tokens."""

    tokens: tuple[StoredToken, ...] = ()


class Tokens:
    """The tokens of a file, read anew whenever it changes.

    Args:
        path: The file; `create` makes it.

    Raises:
        ConfigError: It cannot be read, or others may write to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._content = TokenFile()
        if path.exists():
            self.read()

    def read(self) -> tuple[StoredToken, ...]:
        """Return what is in the file now; a file that is gone has none."""
        with self._lock:
            try:
                info = self.path.stat()
            except FileNotFoundError:
                self._seen, self._content = None, TokenFile()
                return ()
            seen = (info.st_mtime_ns, info.st_size, info.st_ino)
            if seen != self._seen:
                self._content = self._parse(info)
                self._seen = seen
            return self._content.tokens

    def _parse(self, info: os.stat_result) -> TokenFile:
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                "the file of tokens must be writable by its owner only",
                got=f"{self.path} with mode {stat.S_IMODE(info.st_mode):o}",
                fix=f"chmod 600 {self.path}",
            )
        try:
            return TokenFile.model_validate_json(self.path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigError(
                "the file of tokens must be one that `laminar token create` wrote",
                got=self.path,  # its content is nobody's business
                fix="name another, or make one",
            ) from error

    def find(self, token: str) -> User | None:
        """Return whose token this is, None if nobody's; in a time that tells nothing of it."""
        digest = hash_token(token)
        found = None
        for stored in self.read():
            if hmac.compare_digest(stored.sha256, digest):
                found = stored.user
        return found

    def create(self, user: User) -> str:
        """Make a token and keep its hash; what is returned is kept nowhere."""
        token = PREFIX + secrets.token_urlsafe(32)
        stored = StoredToken(
            id=secrets.token_hex(4), user=user, sha256=hash_token(token), created_at=now()
        )
        self._write((*self.read(), stored))
        return token

    def revoke(self, token_id: str) -> None:
        """Remove a token.

        Raises:
            ConfigError: There is none of this identifier.
        """
        tokens = self.read()
        left = tuple(t for t in tokens if t.id != token_id)
        if len(left) == len(tokens):
            raise ConfigError(
                "a token to revoke must be in the file",
                got=token_id,
                expected=", ".join(t.id for t in tokens) or "nothing, there are none",
                fix="see `laminar token list`",
            )
        self._write(left)

    def _write(self, tokens: tuple[StoredToken, ...]) -> None:
        before = os.umask(0o177)
        try:
            content = TokenFile(tokens=tokens).model_dump_json(indent=1).encode()
            write_durably(self.path, content)
        finally:
            os.umask(before)


def hash_token(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
