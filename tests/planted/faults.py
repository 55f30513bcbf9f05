"""What an object store and the way to it may do, as rules of the S3 double. Every choice is drawn from a seed."""

import random
import time

from s3double import Asked, Cut, Delay, Refuse, Rule


def storm(seconds: float, share: float = 0.5, seed: int = 0) -> Rule:
    """503 on a share of all requests, for some time from now."""
    end, chance = time.monotonic() + seconds, random.Random(seed)
    return lambda asked: Refuse() if time.monotonic() < end and chance.random() < share else None


def cuts(share: float = 0.1, seed: int = 0) -> Rule:
    """A share of all connections is cut: half of them before, half after the server has done what was asked."""
    chance = random.Random(seed)
    return lambda asked: Cut(after=chance.random() < 0.5) if chance.random() < share else None


def delays(seconds: float, share: float = 0.03, seed: int = 0) -> Rule:
    """A share of all requests arrives late."""
    chance = random.Random(seed)
    return lambda asked: Delay(seconds) if chance.random() < share else None


def no_copies(asked: Asked) -> Refuse | None:
    """A copy is refused, as S3 refuses one of more than 5 GB."""
    said = b"<Error><Code>InvalidRequest</Code><Message>The specified copy source is larger than the maximum</Message></Error>"
    return Refuse(400, said) if asked.copy else None
