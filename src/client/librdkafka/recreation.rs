//! Notices that a topic was deleted and created again, which librdkafka says only in its log.
//!
//! It goes on with the offsets of the old topic, and after a broker's restart with its leader epoch as well. The
//! epoch of a new topic starts anew, so librdkafka takes all that it learns of the new one for outdated, and neither
//! reads nor writes any more: <https://github.com/confluentinc/librdkafka/issues/4898>. Topics have ids from
//! Kafka 2.8 on. Of one without, librdkafka never takes note that it has fewer partitions than before.

use std::collections::BTreeMap;
use std::mem::take;

/// The id that librdkafka gives a topic of which it knows none, in base64.
const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// The most ids that are remembered.
const MAX_IDS: usize = 100;

/// What librdkafka's log lines say about one topic. They come with `debug=topic`.
#[derive(Debug, Default)]
pub(super) struct Incarnations {
    /// Those seen, the first one first: a broker that lags behind may still name an earlier one.
    ids: Vec<String>,
    is_recreated: bool,
    is_outdated: bool,
    is_misled: bool,
    /// By partition: the leader in the last answer, and the one that librdkafka uses.
    answered: BTreeMap<String, String>,
    used: BTreeMap<String, String>,
    partition_count: usize,
}

impl Incarnations {
    /// Takes note of a log line.
    pub(super) fn on_log(&mut self, line: &str) {
        if let Some((partition, leader)) = of_partition(line, "] Leader ") {
            self.answered.insert(partition, first_word(leader));
        }
        if let Some((partition, change)) = of_partition(line, "]: leader ")
            && let Some((_, leader)) = change.split_once(" -> leader ")
        {
            self.used.insert(partition, first_word(leader));
        }
        if let Some((partition, _)) = of_partition(line, "]: ignoring outdated metadata update") {
            self.is_outdated = true;
            self.is_misled |= self.used.get(&partition) != self.answered.get(&partition);
        }
        if let Some((_, counts)) = line.split_once(" partition count changed from ")
            && let Some((_, count)) = counts.split_once(" to ")
        {
            self.partition_count = count.trim_end().parse().unwrap_or(0);
        }
        let Some((_, ids)) = line.split_once(" changed id from ") else {
            return;
        };
        let Some((_, id)) = ids.split_once(" to ") else {
            return;
        };
        let id = id.trim_end();
        if id == NO_ID || self.ids.iter().any(|known| known == id) {
            return;
        }
        self.is_recreated |= !self.ids.is_empty();
        if self.ids.len() == MAX_IDS {
            self.ids.remove(0);
        }
        self.ids.push(id.to_string());
    }

    /// Whether the topic was created again since the last call.
    pub(super) fn take_recreated(&mut self) -> bool {
        take(&mut self.is_recreated)
    }

    /// How many partitions librdkafka takes the topic to have; 0 if it does not know.
    pub(super) fn partition_count(&self) -> usize {
        self.partition_count
    }

    /// Whether librdkafka has taken news of the topic for outdated since the last call.
    pub(super) fn take_outdated(&mut self) -> bool {
        take(&mut self.is_outdated)
    }

    /// Whether that news named another leader than librdkafka uses, since the last call. With the right one it can
    /// write, but not read: only a fetch has the epoch.
    pub(super) fn take_misled(&mut self) -> bool {
        take(&mut self.is_misled)
    }
}

/// The partition that stands before `mark` in a log line, and what stands after it.
fn of_partition<'a>(line: &'a str, mark: &str) -> Option<(String, &'a str)> {
    let (before, after) = line.split_once(mark)?;
    let (_, partition) = before.rsplit_once('[')?;
    Some((partition.into(), after))
}

fn first_word(text: &str) -> String {
    text.split(' ').next().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the topic was created again, after each of these ids.
    fn recreated(ids: &[(&str, &str)]) -> Vec<bool> {
        let mut topic = Incarnations::default();
        let seen = ids.iter().map(|(from, to)| {
            topic.on_log(&format!(
                "[thrd:main]: Topic bob changed id from {from} to {to}"
            ));
            topic.take_recreated()
        });
        seen.collect()
    }

    #[test]
    fn a_new_id_is_a_new_topic_and_the_first_one_is_not() {
        let ids = [(NO_ID, "a"), ("a", "b"), ("b", NO_ID), (NO_ID, "c")];
        assert_eq!(recreated(&ids), [false, true, false, true]);
    }

    #[test]
    fn a_broker_that_lags_behind_does_not_create_it_again() {
        let ids = [(NO_ID, "a"), ("a", "b"), ("b", "a"), ("a", "b")];
        assert_eq!(recreated(&ids), [false, true, false, false]);
    }

    #[test]
    fn the_number_of_partitions_is_the_one_that_was_logged_last() {
        let mut topic = Incarnations::default();
        for count in [2, 6, 1] {
            topic.on_log(&format!(
                "[thrd:main]: Topic bob partition count changed from 0 to {count}"
            ));
            assert_eq!(topic.partition_count(), count);
        }
    }

    #[test]
    fn news_that_is_taken_for_outdated_misleads_if_it_names_another_leader() {
        for (leader, is_misled) in [("2", false), ("1", true)] {
            let mut topic = Incarnations::default();
            topic.on_log("[thrd:main]: Topic bob [0] Leader 2 Epoch 3");
            topic.on_log("[thrd:main]: bob [0]: leader 1 epoch 2 -> leader 2 epoch 3");
            topic.on_log("[thrd:main]: Topic bob [1] Leader 3 Epoch 0");
            topic.on_log(&format!(
                "[thrd:main]: Topic bob [0] Leader {leader} Epoch 0"
            ));
            assert!(!topic.take_misled());
            topic.on_log(
                "[thrd:main]: bob [0]: ignoring outdated metadata update with leader epoch 0 which is older than our \
                 cached epoch 3",
            );
            assert_eq!(topic.take_misled(), is_misled, "leader {leader}");
            assert!(!topic.take_misled() && topic.take_outdated());
        }
    }

    #[test]
    fn news_that_is_taken_for_outdated_is_noticed_once() {
        let mut topic = Incarnations::default();
        topic.on_log("[thrd:main]: bob [0]: leader 1 epoch 2 -> leader 1 epoch 3");
        assert!(!topic.take_outdated());
        topic.on_log(
            "[thrd:main]: bob [0]: ignoring outdated metadata update with leader epoch 0 which is older than our \
             cached epoch 3",
        );
        assert!(topic.take_outdated() && !topic.take_outdated());
    }
}
