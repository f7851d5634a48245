//! Who has written to a user since they were last read, for a user who is asked whom to talk with.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use super::history::{MAX_OFFSETS, bounds};
use super::position_group_of;
use crate::client::{Cluster, GroupOffsets, Record, is_before};
use crate::delivery::lines;
use crate::ending::{say, spawn};
use crate::error::Result;
use crate::last::kept;
use crate::name::Name;
use crate::seal::{Reader, Secret, Seen};

/// How many writers are looked up: those who wrote last.
const MAX_WRITERS: usize = 10;

/// A line in the user's topic.
#[derive(Debug)]
struct Line {
    sender: Name,
    partition: i32,
    offset: i64,
    /// Of a sealed line.
    seen: Option<Seen>,
}

/// What the search for writers finds.
enum Found {
    /// A writer, and how many lines are unread.
    Writer(Name, u64),
    /// There are no more.
    All,
}

/// Prints who has written, the last one first, and how many lines each, as far as that is known in time; if it is not,
/// says so. Without a cluster, there was no connection in time. If nobody has written, nothing is printed. With a
/// secret, only the lines that a chat would show count.
pub fn list_writers(
    cluster: Option<&dyn Cluster>,
    me: &Name,
    secret: Option<&Secret>,
    until: Instant,
) {
    let found = cluster.map(|it| start(it, me, secret, until)).transpose();
    let Ok(found) = found else {
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
fn start(
    cluster: &dyn Cluster,
    me: &Name,
    secret: Option<&Secret>,
    until: Instant,
) -> Result<Receiver<Found>> {
    let (reader, mut groups, me) = (cluster.reader(), cluster.group_offsets()?, me.clone());
    let secret = secret.cloned();
    let (tx, writers) = mpsc::channel();
    spawn("writers", move || {
        let opener = secret.map(|secret| Reader::new(&secret, &me)).transpose();
        // That keys cannot be derived is said when the chat opens.
        let Ok(mut opener) = opener else { return };
        let open = |start| reader(&me, start);
        let keep = |record: &Record<'_>| line(record, &me, opener.as_ref());
        let mut lines = match kept(MAX_OFFSETS as u64, &bounds(until), open, keep) {
            Err(_) if Instant::now() >= until => return,
            // Of a topic that can't be read, nothing is known.
            lines => lines.unwrap_or_default(),
        };
        if let Some(opener) = &mut opener {
            leave_out_copies(&mut lines, opener);
        }
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

/// The line in a record, if it can be answered, and opened if `opener` is given.
fn line(record: &Record<'_>, me: &Name, opener: Option<&Reader>) -> Option<Line> {
    let (key, value) = (record.key?, record.value?);
    let sender: Name = std::str::from_utf8(key).ok()?.parse().ok()?;
    if sender == *me {
        return None;
    }
    let seen = match opener {
        Some(opener) => Some(opener.look(key, value)?.0),
        None => None,
    };
    Some(Line {
        sender,
        partition: record.partition,
        offset: record.offset,
        seen,
    })
}

/// Leaves out sealed lines that are repeated or out of order.
fn leave_out_copies(lines: &mut Vec<Line>, opener: &mut Reader) {
    lines.retain_mut(|line| line.seen.take().is_none_or(|seen| opener.takes(seen)));
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
        let Ok(position) = groups.committed(&position_group_of(me, &name), me) else {
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
    use crate::seal::Sealer;

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
            seen: None,
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
            assert_eq!(line(&record, &me, None).is_some(), counts, "{record:?}");
        }
    }

    #[test]
    fn with_a_secret_only_lines_that_are_shown_count() {
        let secret = Secret::of(b"a secret for this test".to_vec().into()).unwrap();
        let [me, bob, carol] = ["alice", "bob", "carol"].map(|it| it.parse().unwrap());
        let sealed = |sender| {
            let mut sealer = Sealer::new(&secret, sender, &me).unwrap();
            [(); 2].map(|()| sealer.seal(0, b"hi").unwrap().to_vec())
        };
        let ([one, two], [carols, _]) = (sealed(&bob), sealed(&carol));
        let mut opener = Reader::new(&secret, &me).unwrap();
        let values = [
            &one[..],
            b"not sealed",
            &one,
            &two,
            &carols,
            &one,
            b"sealed1:AAAA",
        ];
        let records = (0..).zip(values).map(|(offset, value)| Record {
            offset,
            key: Some(b"bob"),
            value: Some(value),
            ..Record::default()
        });
        let lines = records.filter_map(|record| line(&record, &me, Some(&opener)));
        let mut lines: Vec<Line> = lines.collect();
        leave_out_copies(&mut lines, &mut opener);
        let offsets: Vec<i64> = lines.iter().map(|line| line.offset).collect();
        assert_eq!(offsets, [0, 3]);
    }
}
