//! Finds out which lines are in the log, when the client that they were handed to can't say any more.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::LibrdkafkaCluster;
use super::errors::is_transient;
use super::reader::ReadClient;
use super::topic::{ANSWER_TIMEOUT, TopicRequests, metadata};
use crate::client::Offsets;
use crate::name::Name;

/// A line that has no outcome yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unsettled {
    pub(super) line: u64,
    pub(super) value: Vec<u8>,
}

/// Which records can be lines without an outcome.
pub(super) struct Search<'a> {
    /// Their key.
    pub(super) key: &'a [u8],
    /// The offset after the last line that was acknowledged, in the partitions where one was.
    pub(super) ends: Offsets,
    /// In the others: when the first line can have been written, in milliseconds since 1970. A topic with a broker's
    /// own times (LogAppendTime) and a slow clock can hide a line from this.
    pub(super) since: i64,
    /// When the search is given up.
    pub(super) deadline: Instant,
}

/// Another client, which finds the cluster, and reads the topic.
pub(super) struct Witness {
    reader: ReadClient,
    requests: TopicRequests,
}

impl Witness {
    /// Connects; none if there is no answer within `timeout`.
    pub(super) fn of(
        cluster: &LibrdkafkaCluster,
        doing: &str,
        topic: &Name,
        timeout: Duration,
    ) -> Option<Witness> {
        // What happens to its connections is not reported: it is only asked.
        let status = cluster.status(drop);
        let config = cluster.reader_config(&[]);
        let create = || ReadClient::create(&config, &status);
        metadata(create().ok()?.client(), topic.as_str(), timeout).ok()?;
        let serve = |reader: &ReadClient, time| drop(reader.serve(time));
        let (reader, requests) =
            TopicRequests::connect(&status, doing.to_string(), topic, &create, &serve).ok()?;
        Some(Witness { reader, requests })
    }

    /// The topic's partitions.
    pub(super) fn partitions(&self) -> BTreeSet<i32> {
        self.requests.partitions()
    }

    /// Reads to the present end of the topic, and calls `on_found` with each of `lines` that is there: its number,
    /// partition and offset. Returns the others, in their order. If it fails, another witness may succeed: this one can
    /// have come to know a topic that was deleted a moment later, of which librdkafka
    /// [does not let go](super::recreation).
    ///
    /// Another program that writes the same lines under the same name meanwhile can't be told from this one.
    pub(super) fn find(
        &self,
        search: &Search<'_>,
        lines: &[Unsettled],
        mut on_found: impl FnMut(u64, i32, i64),
    ) -> KafkaResult<Vec<Unsettled>> {
        let found = match self.read(search, lines, &self.start(search, &search.ends)?) {
            // The log is another one, or has lost records: the ends are of no use.
            Err(error) if error.rdkafka_error_code() == Some(Code::AutoOffsetReset) => {
                self.read(search, lines, &self.start(search, &Offsets::new())?)?
            }
            found => found?,
        };
        for (line, partition, offset) in &found.written {
            on_found(*line, *partition, *offset);
        }
        Ok(found.rest())
    }

    /// From where on there can be lines that were not acknowledged.
    fn start(&self, search: &Search<'_>, ends: &Offsets) -> KafkaResult<TopicPartitionList> {
        let topic = &self.requests.topic;
        let since = self.requests.all_at(Offset::Offset(search.since))?;
        let mut start = self.reader.offsets_for_times(since, ANSWER_TIMEOUT)?;
        for (&partition, &end) in ends {
            if start.find_partition(topic, partition).is_some() {
                start.set_partition_offset(topic, partition, Offset::Offset(end))?;
            }
        }
        Ok(start)
    }

    fn read<'l>(
        &self,
        search: &Search<'_>,
        lines: &'l [Unsettled],
        start: &TopicPartitionList,
    ) -> KafkaResult<Found<'l>> {
        let mut found = Found::new(lines);
        let mut unread = self.partitions();
        self.reader.assign(start)?;
        let mut last_answer = Instant::now();
        while !unread.is_empty() {
            let is_silent = last_answer.elapsed() >= ANSWER_TIMEOUT;
            if is_silent || Instant::now() >= search.deadline {
                return Err(KafkaError::MessageConsumption(Code::OperationTimedOut));
            }
            match self.reader.poll(ANSWER_TIMEOUT) {
                Some(Ok(record)) if record.key() == Some(search.key) => {
                    let value = record.payload().unwrap_or_default();
                    found.on_record(record.partition(), record.offset(), value);
                }
                Some(Ok(_)) => {}
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    unread.remove(&partition);
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(Code::AutoOffsetReset) => return Err(error),
                    _ if is_transient(&error) => continue,
                    _ => return Err(error),
                },
                None => return Err(KafkaError::MessageConsumption(Code::OperationTimedOut)),
            }
            last_answer = Instant::now();
        }
        Ok(found)
    }
}

/// Which of a sender's lines its records are.
struct Found<'l> {
    lines: &'l [Unsettled],
    is_written: Vec<bool>,
    /// All lines before this one are written.
    first: usize,
    /// Numbers of lines, each with its partition and offset.
    written: Vec<(u64, i32, i64)>,
}

impl<'l> Found<'l> {
    fn new(lines: &'l [Unsettled]) -> Found<'l> {
        Found {
            lines,
            is_written: vec![false; lines.len()],
            first: 0,
            written: Vec::new(),
        }
    }

    fn on_record(&mut self, partition: i32, offset: i64, value: &[u8]) {
        let is_it = |&n: &usize| !self.is_written[n] && self.lines[n].value == value;
        let Some(n) = (self.first..self.lines.len()).find(is_it) else {
            return;
        };
        self.is_written[n] = true;
        self.written.push((self.lines[n].line, partition, offset));
        while self.is_written.get(self.first) == Some(&true) {
            self.first += 1;
        }
    }

    fn rest(&self) -> Vec<Unsettled> {
        let lines = self.lines.iter().zip(&self.is_written);
        let rest = lines.filter(|(_, is_written)| !**is_written);
        rest.map(|(line, _)| line.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(values: &[&str]) -> Vec<Unsettled> {
        let line = |(n, value): (usize, &&str)| Unsettled {
            line: 7 + n as u64,
            value: value.as_bytes().to_vec(),
        };
        values.iter().enumerate().map(line).collect()
    }

    #[test]
    fn a_batch_that_was_written_is_found_and_the_lines_after_it_are_left() {
        let lines = lines(&["a", "b", "a", "c"]);
        let mut found = Found::new(&lines);
        for (offset, value) in [(3, "a"), (5, "b")] {
            found.on_record(0, offset, value.as_bytes());
        }
        assert_eq!(found.written, [(7, 0, 3), (8, 0, 5)]);
        assert_eq!(found.rest(), lines[2..]);
    }

    #[test]
    fn other_records_of_the_sender_are_no_lines_and_equal_lines_are_as_many_as_records() {
        let lines = lines(&["a", "a", "b"]);
        let mut found = Found::new(&lines);
        for (offset, value) in [(0, "x"), (1, "a"), (2, ""), (3, "b"), (4, "b")] {
            found.on_record(1, offset, value.as_bytes());
        }
        assert_eq!(found.written, [(7, 1, 1), (9, 1, 3)]);
        assert_eq!(found.rest(), lines[1..2]);
    }
}
