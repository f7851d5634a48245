//! Finds records that are compressed: crate `kafka` is built without compression, and of a fetch that has one it gives
//! nothing, not even which record it is. So fetches are made smaller, until one has only what is before that record.
//!
//! What is compressed with zstd, the broker does not give to a client that asks for the oldest version of a fetch
//! ([KIP-110](https://cwiki.apache.org/confluence/display/KAFKA/KIP-110%3A+Add+Codec+for+ZStandard+Compression)).

use std::time::{Duration, Instant};

use kafka::client::fetch::Response;

use super::errors::CallError;
use super::fetch::{FETCH_BYTES, fetch_request, fetched, has_unknown_error, open, records};
use super::topic_client::{REQUEST_TIMEOUT, TopicClient};
use crate::client::{Offsets, probe};
use crate::wire::code;

/// What a fetch of so many bytes has.
enum Fetched {
    /// Perhaps not whole.
    Nothing(Vec<Response>),
    Records(Vec<Response>),
    /// A compressed record, and perhaps others before it.
    Compressed,
    /// The record there is not given, for a reason that the crate does not tell.
    Refused(Vec<Response>),
}

impl TopicClient {
    /// Fetches what a partition has from `offset` on, but nothing that is compressed. None if the record at `offset` is.
    ///
    /// `size` is the size of the batch that was compressed last: the next record is probably in it, too.
    pub(super) fn fetch_readable(
        &mut self,
        partition: i32,
        offset: i64,
        size: &mut i32,
    ) -> Result<Option<Vec<Response>>, CallError> {
        let (mut small, mut large) = (0, FETCH_BYTES);
        let mut guesses = match *size {
            0 => vec![FETCH_BYTES],
            size => vec![FETCH_BYTES, size - 1, size],
        };
        while large - small > 1 {
            let tried = guesses.pop().unwrap_or(small + (large - small) / 2);
            match self.try_fetch(partition, offset, tried)? {
                Fetched::Records(responses) => return Ok(Some(responses)),
                // There is nothing to be read.
                Fetched::Nothing(responses) if tried == FETCH_BYTES => return Ok(Some(responses)),
                Fetched::Nothing(_) => small = small.max(tried),
                Fetched::Compressed => large = large.min(tried),
                Fetched::Refused(responses) => {
                    let is_compressed = self.is_refused_as_compressed(partition, offset)?;
                    return Ok((!is_compressed).then_some(responses));
                }
            }
            // Where the first guess is too small, the second one is, too.
            if small == *size {
                guesses.retain(|&guess| guess == FETCH_BYTES);
            }
        }
        *size = large;
        Ok(None)
    }

    fn try_fetch(&mut self, partition: i32, offset: i64, size: i32) -> Result<Fetched, CallError> {
        let responses = match self.fetch_now(Offsets::from([(partition, offset)]), size) {
            Err(CallError::Compressed) => return Ok(Fetched::Compressed),
            responses => responses?,
        };
        if self.has_refused(&responses) {
            return Ok(Fetched::Refused(responses));
        }
        let first = records(&responses).next().transpose();
        let first = first.map_err(|(_, error)| error)?;
        Ok(match first.is_some() {
            true => Fetched::Records(responses),
            false => Fetched::Nothing(responses),
        })
    }

    /// Whether a Kafka gives nothing of some partition, for a reason that the crate does not tell.
    pub(super) fn has_refused(&self, responses: &[Response]) -> bool {
        !self.broker.is_small() && has_unknown_error(responses)
    }

    /// Asks again why there is no record at `offset`: crate `kafka` knows no error code after 35.
    fn is_refused_as_compressed(&self, partition: i32, offset: i64) -> Result<bool, CallError> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let stream = open(self.leader())?;
        let from = Offsets::from([(partition, offset)]);
        let request = fetch_request(&self.topic, &from, FETCH_BYTES, Duration::ZERO);
        let (header, max_bytes) = (probe::HEADER, 2 * FETCH_BYTES as usize);
        let mut answer = probe::exchange(&stream, &header, &request, max_bytes, deadline)?;
        let mut partitions = fetched(&header, &mut answer)?;
        Ok(partitions.any(|it| it.error_code == code::UNSUPPORTED_COMPRESSION_TYPE))
    }
}
