//! What a topic takes at most in one batch, and what becomes of a batch that is larger.
//!
//! librdkafka does not split a batch that a broker refuses as too large, and fails all of its lines:
//! <https://github.com/confluentinc/librdkafka/issues/488>. So it is made to stop there (`enable.gapless.guarantee`),
//! before any later line is written, and the lines go to a new client, in smaller batches.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::error::Error;

/// librdkafka's `batch.size`, if it is not set.
const DEFAULT_BATCH_BYTES: usize = 1_000_000;

/// What a batch of one line has at least beside key and value: the batch's head, and lengths.
const OVERHEAD: usize = 68;

/// How long a limit counts. Then a line is tried again: the limit may be a higher one by now.
const VALID_FOR: Duration = Duration::from_secs(10);

/// `max.message.bytes` of a topic, as it was at some time.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimit {
    pub(super) bytes: usize,
    known_since: Instant,
}

impl BatchLimit {
    pub(super) fn new(bytes: usize) -> BatchLimit {
        BatchLimit {
            bytes,
            known_since: Instant::now(),
        }
    }

    /// Whether a line that has so many bytes with its key is certainly refused.
    pub(super) fn refuses(&self, bytes: usize) -> bool {
        bytes + OVERHEAD > self.bytes && self.known_since.elapsed() < VALID_FOR
    }
}

/// Why a line was given up that has so many bytes with its key. The limit of the topic is named if it is known, and is
/// what stops the line.
pub(super) fn refusal(bytes: usize, topic: impl Display, limit: Option<usize>) -> Error {
    let error = match limit {
        // A little more than what is certain: numbers can be longer.
        Some(limit) if bytes + OVERHEAD + 30 > limit => Error::too_large_for(topic, limit),
        _ => Error::too_large(),
    };
    error.of_size(bytes as u64)
}

/// The `batch.size` with which the lines of a refused batch of `refused` bytes are tried again: it at least halves, so
/// that in the end each line is alone.
pub(super) fn smaller_batch(current: Option<&str>, refused: usize, limit: Option<usize>) -> usize {
    let current = current.and_then(|it| it.parse().ok());
    let half = current.unwrap_or(DEFAULT_BATCH_BYTES).min(refused) / 2;
    half.min(limit.unwrap_or(half)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_refused_only_if_it_can_not_fit() {
        let limit = BatchLimit::new(1000);
        assert!(!limit.refuses(1000 - OVERHEAD));
        assert!(limit.refuses(1001 - OVERHEAD));
    }

    #[test]
    fn a_topics_limit_is_named_only_where_it_is_the_reason() {
        for (limit, is_named) in [(Some(1000), true), (Some(100_000), false), (None, false)] {
            let error = refusal(5000, "bob", limit).to_string();
            assert!(error.starts_with("5000 bytes, too large"), "{error}");
            assert_eq!(error.contains("max.message.bytes"), is_named, "{error}");
        }
    }

    #[test]
    fn batches_become_smaller_until_each_line_is_alone() {
        for (current, refused, limit, expected) in [
            (None, 9000, Some(1000), 1000),
            (None, 9000, None, 4500),
            (Some("4500"), 3000, Some(8000), 1500),
            (Some("4500"), 5000, None, 2250),
            (Some("1"), 0, None, 1),
        ] {
            assert_eq!(smaller_batch(current, refused, limit), expected);
        }
    }
}
