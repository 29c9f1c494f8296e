"""Where closed bars come from: an exchange, stored bars replayed, or made-up ones."""

from service.feed.protocol import BarFeed, ClockReading, FeedRefused, FeedUnavailable

__all__ = ["BarFeed", "ClockReading", "FeedRefused", "FeedUnavailable"]
