//! Who has written to a user since they were last read, for a user who is asked whom to talk with.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use super::history::{MAX_OFFSETS, bounds};
use super::position_of;
use crate::client::{Cluster, GroupOffsets, Record, is_before};
use crate::delivery::lines;
use crate::ending::{say, spawn};
use crate::error::Result;
use crate::last::kept;
use crate::name::Name;

/// How many writers are looked up: those who wrote last.
const MAX_WRITERS: usize = 10;

/// A line in the user's topic.
#[derive(Debug)]
struct Line {
    sender: Name,
    partition: i32,
    offset: i64,
}

/// What the search for writers finds.
enum Found {
    /// A writer, and how many lines are unread.
    Writer(Name, u64),
    /// There are no more.
    All,
}

/// Prints who has written, the last one first, and how many lines each, as far as that is known in time; if it is not,
/// says so. Without a cluster, there was no connection in time. If nobody has written, nothing is printed.
pub fn list_writers(cluster: Option<&dyn Cluster>, me: &Name, until: Instant) {
    let Ok(found) = cluster.map(|it| start(it, me, until)).transpose() else {
        return;
    };
    let mut is_first = true;
    let left = || until.saturating_duration_since(Instant::now());
    while let Some(Ok(found)) = found.as_ref().map(|it| it.recv_timeout(left())) {
        let Found::Writer(name, unread) = found else {
            return;
        };
        if std::mem::take(&mut is_first) {
            say("Written to you since you last read them:");
        }
        say(format_args!("  {name}, {}", lines(unread)));
    }
    say(match is_first {
        true => "Who has written to you could not be looked up in time.",
        false => "  (not all could be looked up in time)",
    });
}

/// Looks for them on a thread of its own: a broker may be slow.
fn start(cluster: &dyn Cluster, me: &Name, until: Instant) -> Result<Receiver<Found>> {
    let (reader, mut groups, me) = (cluster.reader(), cluster.group_offsets()?, me.clone());
    let (tx, writers) = mpsc::channel();
    spawn("writers", move || {
        let open = |start| reader.consumer(&me, start);
        let keep = |record: &Record<'_>| line(record, &me);
        let lines = match kept(MAX_OFFSETS as u64, &bounds(until), open, keep) {
            Err(_) if Instant::now() >= until => return,
            // Of a topic that can't be read, nothing is known.
            lines => lines.unwrap_or_default(),
        };
        let tell = |name, count| {
            let is_heard = tx.send(Found::Writer(name, count)).is_ok();
            is_heard && Instant::now() < until
        };
        if unread(lines, groups.as_mut(), &me, tell) {
            _ = tx.send(Found::All);
        }
    })?;
    Ok(writers)
}

/// The line in a record, if it can be answered.
fn line(record: &Record<'_>, me: &Name) -> Option<Line> {
    record.value?;
    let sender: Name = std::str::from_utf8(record.key?).ok()?.parse().ok()?;
    (sender != *me).then_some(Line {
        sender,
        partition: record.partition,
        offset: record.offset,
    })
}

/// Calls `each` with those who wrote unread lines, and their number, the last one first, while that returns true.
/// Returns whether it did for all of them.
fn unread(
    lines: Vec<Line>,
    groups: &mut dyn GroupOffsets,
    me: &Name,
    mut each: impl FnMut(Name, u64) -> bool,
) -> bool {
    // By name, the place of each line, and the index of the last.
    let mut writers: BTreeMap<Name, (usize, Vec<(i32, i64)>)> = BTreeMap::new();
    for (n, line) in lines.into_iter().enumerate() {
        let (last, places) = writers.entry(line.sender).or_default();
        *last = n;
        places.push((line.partition, line.offset));
    }
    let mut writers: Vec<_> = writers.into_iter().collect();
    writers.sort_unstable_by_key(|(_, (last, _))| std::cmp::Reverse(*last));
    for (name, (_, places)) in writers.into_iter().take(MAX_WRITERS) {
        // Of a position that can't be looked up, nothing is known.
        let Ok(position) = groups.committed(&position_of(me, &name), me) else {
            continue;
        };
        let is_unread =
            |(partition, offset): &&(i32, i64)| !is_before(&position, *partition, *offset);
        let count = places.iter().filter(is_unread).count() as u64;
        if count > 0 && !each(name, count) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Offsets;
    use crate::error::Error;

    /// What bob and carol have been read up to; dave's position may not be looked up.
    struct Groups;

    impl GroupOffsets for Groups {
        fn committed(&mut self, group: &str, topic: &Name) -> Result<Offsets> {
            assert_eq!(topic.as_str(), "alice");
            match group {
                "chat:alice:bob" => Ok([(0, 4)].into()),
                "chat:alice:carol" => Ok([(0, 100), (1, 100)].into()),
                "chat:alice:dave" => Err(Error::denied("cannot read", "not allowed")),
                _ => Ok(Offsets::new()),
            }
        }

        fn commit(&mut self, _: &str, _: &Name, _: &Offsets) -> Result<()> {
            unreachable!()
        }
    }

    fn listed(senders: &[&str], most: usize) -> Vec<String> {
        let me = "alice".parse().unwrap();
        let line = |(offset, sender): (i64, &&str)| Line {
            sender: sender.parse().unwrap(),
            partition: 0,
            offset,
        };
        let lines = (0..).zip(senders).map(line).collect();
        let mut listed = Vec::new();
        unread(lines, &mut Groups, &me, |name, count| {
            listed.push(format!("{name} {count}"));
            listed.len() < most
        });
        listed
    }

    #[test]
    fn those_with_unread_lines_are_listed_the_last_one_first() {
        let senders = ["bob", "erin", "bob", "erin", "bob", "bob", "carol", "dave"];
        assert_eq!(listed(&senders, 10), ["bob 2", "erin 2"]);
        assert_eq!(listed(&senders, 1), ["bob 2"]);
        assert!(listed(&[], 10).is_empty());
        let many: Vec<String> = (0..100).map(|n| format!("user{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let listed = listed(&many, 100);
        assert_eq!(listed.len(), MAX_WRITERS);
        assert_eq!(listed[0], "user99 1");
    }

    #[test]
    fn a_line_that_cannot_be_answered_is_not_counted() {
        let me = "alice".parse().unwrap();
        for (key, value, counts) in [
            (Some(&b"bob"[..]), Some(&b"hi"[..]), true),
            (Some(b"bob"), None, false),
            (Some(b"alice"), Some(b"hi"), false),
            (Some(b"b\x1bob"), Some(b"hi"), false),
            (Some(b""), Some(b"hi"), false),
            (None, Some(b"hi"), false),
        ] {
            let record = Record {
                key,
                value,
                ..Record::default()
            };
            assert_eq!(line(&record, &me).is_some(), counts, "{record:?}");
        }
    }
}
