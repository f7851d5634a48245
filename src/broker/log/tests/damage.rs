//! What is left of a damaged log, and what is said about it.

use std::collections::BTreeSet;
use std::ops::Range;

use super::*;
use crate::broker::Report;

mod lost;

/// Where a message's offset and its size end: small numbers differ only there.
const OFFSET: usize = 7;
const SIZE: usize = 11;

/// A line of the log: its offset, and its message without that.
type Line = (i64, Vec<u8>);

/// A log that is damaged again and again.
struct Damaged {
    /// The files of the topic before that, each with the offset of its first message.
    files: Vec<(String, Vec<u8>)>,
    /// Each message, with its file and its place there.
    lines: Vec<(Line, usize, Range<usize>)>,
}

/// What came of one damage.
struct Left {
    lines: Vec<Line>,
    appended: i64,
    said: Vec<String>,
    dir: TempDir,
}

fn config() -> Config {
    Config {
        segment_bytes: 16 * 1024,
        ..small()
    }
}

/// Message `n`: of both formats, some long, some without a key or a value.
fn line(n: usize) -> Vec<u8> {
    let value = format!(
        "line {n} {}",
        "x".repeat(if n % 50 == 7 { 300 } else { n % 23 })
    );
    let key = (n % 11 != 3).then_some(&b"alice"[..]);
    let value = (n % 17 != 5).then_some(value.as_bytes());
    encode(
        n.is_multiple_of(2).then_some(1_800_000_000_000 + n as i64),
        key,
        value,
    )
}

/// All messages from `offset` on, as a client reads them.
fn read(topic: &Topic, mut offset: i64) -> Vec<Line> {
    let mut lines = Vec::new();
    while offset < topic.offsets().unwrap().end {
        let mut set = Vec::new();
        topic.read(offset, |all| all.min(2000), &mut set).unwrap();
        let mut rest = set.as_slice();
        let before = offset;
        while let Some((found, size)) = message::header(rest)
            && size <= rest.len()
        {
            assert!(found >= offset, "message {found} is given after {offset}");
            assert_eq!(message::check(&rest[..size]), Ok(()));
            lines.push((found, rest[8..size].to_vec()));
            offset = found + 1;
            rest = &rest[size..];
        }
        let is_at_end = || offset >= topic.offsets().unwrap().end;
        assert!(offset > before || is_at_end(), "stuck at {offset}");
    }
    lines
}

impl Damaged {
    fn new(messages: impl Iterator<Item = Vec<u8>>) -> Damaged {
        let dir = TempDir::new().unwrap();
        let log = open(&dir, &config());
        for mut message in messages {
            bob(&log).append(&mut message).unwrap();
        }
        let mut files_read = Vec::new();
        let mut lines = Vec::new();
        for path in files(&dir) {
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            let bytes = fs::read(&path).unwrap();
            let mut at = 0;
            while name.ends_with(".log")
                && let Some((offset, size)) = message::header(&bytes[at..])
            {
                let line = (offset, bytes[at + 8..at + size].to_vec());
                lines.push((line, files_read.len(), at..at + size));
                at += size;
            }
            files_read.push((name, bytes));
        }
        Damaged {
            files: files_read,
            lines,
        }
    }

    /// The whole log, with these bytes of all files together flipped.
    fn flipped(&self, positions: &[usize]) -> Left {
        self.after(|dir| {
            for (file, at) in positions.iter().map(|at| self.place(*at)) {
                let path = dir.join(&self.files[file].0);
                let mut bytes = fs::read(&path).unwrap();
                bytes[at] ^= 1 << (at % 8);
                fs::write(&path, bytes).unwrap();
            }
        })
    }

    /// Flips this bit of the offset of message `n`.
    fn flip_offset(&self, dir: &Path, n: usize, bit: usize) {
        self.change(dir, n, OFFSET - bit / 8, |byte| *byte ^= 1 << (bit % 8));
    }

    /// Changes the byte of message `n` at this place in it.
    fn change(&self, dir: &Path, n: usize, at: usize, change: impl FnOnce(&mut u8)) {
        let (_, file, range) = &self.lines[n];
        let path = dir.join(&self.files[*file].0);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes[range.start + at]);
        fs::write(path, bytes).unwrap();
    }

    /// The log with other bytes: each with its message, and its place in that.
    fn with_bytes(&self, bytes: &[(u8, usize, u8)]) -> Left {
        self.after(|dir| {
            for (n, at, new) in bytes {
                self.change(dir, usize::from(*n), *at, |byte| *byte = *new);
            }
        })
    }

    /// The file, and the byte there, of a byte of all files together.
    fn place(&self, mut at: usize) -> (usize, usize) {
        for (n, (_, bytes)) in self.files.iter().enumerate() {
            if at < bytes.len() {
                return (n, at);
            }
            at -= bytes.len();
        }
        panic!("there is no such byte");
    }

    /// Opens the log after `damage` to its folder, reads it, appends to it, and does so again.
    fn after(&self, damage: impl Fn(&Path)) -> Left {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join("bob-0");
        fs::create_dir(&folder).unwrap();
        identity::create(dir.path()).unwrap();
        for (name, bytes) in &self.files {
            fs::write(folder.join(name), bytes).unwrap();
        }
        damage(&folder);
        let (tx, rx) = mpsc::channel();
        let config = Config {
            report: Report::to(move |said| tx.send(said.to_string()).unwrap()),
            ..config()
        };
        let log = open(&dir, &config);
        let lines = read(&bob(&log), bob(&log).offsets().unwrap().start);
        let appended = bob(&log).append(&mut line(5000)).unwrap();
        let mut expected = lines.clone();
        expected.push((appended, line(5000)[8..].to_vec()));
        assert!(lines.iter().all(|(offset, _)| *offset < appended));
        // From every offset, as far as the log has it.
        for start in [0, 500, appended] {
            let start = start.max(bob(&log).offsets().unwrap().start);
            let from = expected.iter().filter(|(offset, _)| *offset >= start);
            assert!(read(&bob(&log), start).iter().eq(from), "from {start}");
        }
        let said: Vec<_> = rx.try_iter().collect();
        assert_eq!(said.iter().collect::<BTreeSet<_>>().len(), said.len());
        drop(log);
        // After a restart it is the same.
        let log = open(&dir, &config);
        let again = read(&bob(&log), bob(&log).offsets().unwrap().start);
        assert!(again == expected, "a restart changes the log");
        assert_eq!(bob(&log).append(&mut line(5001)).unwrap(), appended + 1);
        Left {
            lines,
            appended,
            said,
            dir,
        }
    }

    /// Flips these bytes: exactly the messages that they are in are missing, and all are reported.
    fn assert_only_the_damaged_are_missing(&self, positions: &[usize]) {
        let left = self.flipped(positions);
        let places: Vec<_> = positions.iter().map(|at| self.place(*at)).collect();
        let is_damaged = |file: &usize, range: &Range<usize>| {
            places.iter().any(|(f, at)| f == file && range.contains(at))
        };
        let is_flipped = |n: usize| {
            self.lines
                .get(n)
                .is_some_and(|(_, file, range)| is_damaged(file, range))
        };
        let (repaired, said): (Vec<_>, Vec<_>) =
            left.said.iter().partition(|said| said.contains("repaired"));
        let repaired: BTreeSet<_> = repaired.into_iter().flat_map(|it| offsets_in(it)).collect();
        for n in 0..self.lines.len() {
            let (_, file, range) = &self.lines[n];
            let offset = range.start..range.start + 8;
            let rest = offset.end..range.end;
            let is_offset = is_damaged(file, &offset) && !is_damaged(file, &rest);
            let is_repaired = repaired.contains(&(n as i64));
            assert!(
                is_offset || !is_repaired,
                "flipped {positions:?}: {n} is repaired"
            );
            // It can't be repaired if a neighbour is damaged, too, or if none follows.
            let is_followed = self
                .lines
                .get(n + 1)
                .is_some_and(|(_, next, _)| next == file);
            let is_alone = is_followed && !is_flipped(n.wrapping_sub(1)) && !is_flipped(n + 1);
            assert!(
                is_repaired || !is_offset || !is_alone,
                "flipped {positions:?}: {n} is lost"
            );
        }
        let (damaged, intact): (Vec<_>, Vec<_>) =
            self.lines.iter().partition(|(line, file, range)| {
                is_damaged(file, range) && !repaired.contains(&line.0)
            });
        let intact: Vec<_> = intact.into_iter().map(|(line, ..)| line.clone()).collect();
        assert!(left.lines == intact, "flipped {positions:?}");
        assert!(left.appended >= self.lines.len() as i64);
        let damaged = damaged.into_iter().map(|((offset, _), ..)| *offset);
        let damaged: BTreeSet<_> = damaged.collect();
        let (mut named, mut count) = (BTreeSet::new(), 0);
        for said in said {
            named.extend(offsets_in(said));
            let said = said.strip_prefix("up to ").unwrap_or(said);
            let (lines, _) = said.split_once(' ').unwrap();
            count += lines.parse::<usize>().unwrap();
        }
        let said = &left.said;
        assert_eq!(count, damaged.len(), "flipped {positions:?}: {said:?}");
        assert!(named.is_subset(&damaged), "flipped {positions:?}: {said:?}");
        // The bytes are where they were, or beside it.
        for (file, at) in places {
            let path = left.dir.path().join("bob-0").join(&self.files[file].0);
            let mut kept = fs::read(&path).unwrap();
            kept.extend(fs::read(path.with_extension("torn")).unwrap_or_default());
            assert_eq!(kept[at], self.files[file].1[at] ^ (1 << (at % 8)));
        }
    }

    /// How many bytes the segments have, which come before the manifest.
    fn bytes(&self) -> usize {
        let segments = self.files.iter().filter(|(name, _)| name != "manifest");
        segments.map(|(_, bytes)| bytes.len()).sum()
    }

    /// The log as earlier versions left it.
    fn without_manifest(mut self) -> Damaged {
        self.files.retain(|(name, _)| name != "manifest");
        self
    }
}

/// The offsets that a sentence names: all, or the first ones.
fn offsets_in(said: &str) -> Vec<i64> {
    let (_, named) = said.split_once("offset").unwrap();
    let (named, _) = named.split_once(':').unwrap();
    let named = named.trim_start_matches('s').trim_end_matches(", …");
    let ranges = named.split(',').map(|range| {
        let mut ends = range.trim().split('-').map(|n| n.parse().unwrap());
        let first: i64 = ends.next().unwrap();
        first..=ends.next().unwrap_or(first)
    });
    ranges.flatten().collect()
}

#[test]
fn a_flipped_byte_costs_the_message_that_it_is_in() {
    let log = Damaged::new((0..1000).map(line));
    assert!(log.files.len() > 2);
    for at in (0..log.bytes()).step_by(97) {
        log.assert_only_the_damaged_are_missing(&[at]);
    }
    // The last message, which could be taken for one that is not complete.
    let (_, _, last) = log.lines.last().unwrap();
    for back in 1..=last.len() {
        log.assert_only_the_damaged_are_missing(&[log.bytes() - back]);
    }
}

#[test]
fn a_flipped_offset_is_repaired_from_its_neighbours() {
    let log = Damaged::new((0..1000).map(line));
    let last_of_file = log
        .lines
        .iter()
        .rposition(|(_, file, _)| *file == 0)
        .unwrap();
    for n in [0, 1, 499, last_of_file, last_of_file + 1, 998, 999] {
        for bit in [0, 1, 7, 8, 31, 62] {
            let left = log.after(|dir| log.flip_offset(dir, n, bit));
            // The last line of a file could have that offset, if lines before it were gone.
            let is_possible = [last_of_file, 999].contains(&n) && bit < 24 && n >> bit & 1 == 0;
            let (how, lost) = if is_possible {
                ("damaged", n)
            } else {
                ("repaired", usize::MAX)
            };
            let lines = log.lines.iter().map(|(line, ..)| line);
            let lines = lines.filter(|(offset, _)| *offset as usize != lost);
            assert!(left.lines.iter().eq(lines), "{n}, {bit}: {:?}", left.said);
            assert_eq!(left.appended, 1000);
            assert_eq!(left.said.len(), 1, "{:?}", left.said);
            let expected = format!("1 line of topic bob is {how}, offset {n}: ");
            assert!(left.said[0].starts_with(&expected), "{:?}", left.said);
        }
    }
}

#[test]
fn a_flipped_offset_under_a_running_broker_is_reported_when_it_is_read() {
    let log = Damaged::new((0..1000).map(line));
    let (tx, said) = mpsc::channel();
    let config = Config {
        report: Report::to(move |said| tx.send(said.to_string()).unwrap()),
        ..config()
    };
    let left = log.after(|_| ());
    let log_again = open(&left.dir, &config);
    assert_eq!(read(&bob(&log_again), 0).len(), 1002);
    log.flip_offset(&left.dir.path().join("bob-0"), 500, 3);
    for _ in 0..2 {
        assert_eq!(read(&bob(&log_again), 0).len(), 1002);
    }
    assert_eq!(said.try_iter().count(), 1);
}

#[test]
fn lines_after_a_gap_in_a_file_get_no_other_offsets() {
    let log = Damaged::new((0..20).map(line));
    for (first, last) in [(10, 17), (10, 18), (10, 19), (18, 19), (17, 19)] {
        // Those between are gone.
        let left = log.after(|dir| {
            let path = dir.join(&log.files[0].0);
            let bytes = fs::read(&path).unwrap();
            let (from, to) = (log.lines[first].2.start, log.lines[last].2.start);
            fs::write(path, [&bytes[..from], &bytes[to..]].concat()).unwrap();
        });
        let is_kept = |line: &Line| log.lines.iter().any(|(it, ..)| it == line);
        assert!(
            left.lines.iter().all(is_kept),
            "from {last} on: {:?}",
            left.said
        );
    }
}

#[test]
fn twenty_flipped_bytes_cost_the_messages_that_they_are_in() {
    let log = Damaged::new((0..1000).map(line));
    let mut random = 1u64;
    let mut position = || {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
        (random >> 33) as usize % log.bytes()
    };
    for _ in 0..40 {
        let positions: BTreeSet<_> = (0..20).map(|_| position()).collect();
        let positions: Vec<_> = positions.into_iter().collect();
        log.assert_only_the_damaged_are_missing(&positions);
    }
}

#[test]
fn a_damaged_long_line_at_the_end_costs_its_own_offset_alone() {
    let long = encode(Some(7), Some(b"alice"), Some(&[b'x'; 1800]));
    let log = Damaged::new((0..3).map(line).chain([long.clone(), long]));
    // Wherever its size does not tell, as many are left out as there can have been lines.
    let size = 8..12;
    for lost in 1..=2 {
        let at: Vec<_> = log.lines[5 - lost..]
            .iter()
            .map(|(_, _, range)| range.start + 900)
            .collect();
        let left = log.flipped(&at);
        assert_eq!(left.appended, 5, "{:?}", left.said);
        log.assert_only_the_damaged_are_missing(&at);
    }
    let (_, _, last) = &log.lines[4];
    for byte in (12..last.len()).step_by(97) {
        let left = log.flipped(&[last.start + byte]);
        assert_eq!(left.appended, 5, "byte {byte}: {:?}", left.said);
    }
    for byte in size.clone() {
        assert_eq!(log.flipped(&[last.start + byte]).appended, 5);
    }
    let at = last.start;
    let log = log.without_manifest();
    for byte in size {
        assert!(log.flipped(&[at + byte]).appended > 5);
    }
}

#[test]
fn flipped_bytes_in_neighbours_cost_these() {
    let log = Damaged::new((0..1000).map(line));
    for n in (0..990).step_by(83) {
        let start = |n: usize| {
            let (_, file, range) = &log.lines[n];
            let before = log.files[..*file].iter().map(|(_, bytes)| bytes.len());
            before.sum::<usize>() + range.start
        };
        // In the offset, the size, the checksum, the magic, and a length.
        for fields in [
            [7, 20],
            [10, 20],
            [11, 10],
            [13, 11],
            [16, 7],
            [19, 7],
            [9, 9],
        ] {
            let (one, two) = (start(n) + fields[0], start(n + 1) + fields[1]);
            log.assert_only_the_damaged_are_missing(&[one, two]);
            log.assert_only_the_damaged_are_missing(&[one, start(n) + 12, two, start(n + 2) + 15]);
        }
    }
}

#[test]
fn a_damaged_size_further_on_does_not_hide_the_lines_before_it() {
    let forged = |n: usize| {
        let mut forged = encode(None, Some(b"mallory"), Some(b"forged"));
        message::set_offset(&mut forged, n as i64 + 1);
        encode(
            None,
            None,
            Some(&[format!("line {n}").as_bytes(), &forged].concat()),
        )
    };
    let same_size = |n: usize| match n % 10 {
        5 => forged(n),
        _ => encode(None, None, Some(format!("line {n}").as_bytes())),
    };
    let log = Damaged::new((0..100).map(same_size));
    for n in 10..90 {
        for bit in 0..8 {
            let left = log.after(|dir| {
                log.change(dir, n, SIZE - 2, |byte| *byte ^= 1 << 5);
                log.change(dir, n + 9, SIZE, |byte| *byte ^= 1 << bit);
            });
            let is_intact = |(offset, _): &&Line| ![n, n + 9].contains(&(*offset as usize));
            let intact = log.lines.iter().map(|(line, ..)| line).filter(is_intact);
            assert!(left.lines.iter().eq(intact), "{n}, {bit}: {:?}", left.said);
        }
    }
}

#[test]
fn an_offset_that_no_neighbour_confirms_is_not_believed() {
    let log = Damaged::new((0..100).map(line)).without_manifest();
    for n in (1..95).step_by(2) {
        for bit in [0, 1, 2] {
            let left = log.after(|dir| {
                log.flip_offset(dir, n + 1, bit);
                // The sizes of both neighbours.
                log.change(dir, n, SIZE, |byte| *byte ^= 8);
                log.change(dir, n + 2, SIZE - 3, |byte| *byte ^= 2);
            });
            let is_kept = |line: &Line| log.lines.iter().any(|(it, ..)| it == line);
            assert!(
                left.lines.iter().all(is_kept),
                "{n}, {bit}: {:?}",
                left.said
            );
        }
    }
}

/// A hundred lines of one size.
fn same_sizes() -> Damaged {
    Damaged::new((0..100).map(|n| encode(None, None, Some(format!("line {n:02}").as_bytes()))))
}

#[test]
fn a_size_that_leads_past_a_line_confirms_no_wrong_offset() {
    for log in [same_sizes(), same_sizes().without_manifest()] {
        let two_lines = (2 * log.lines[0].2.len() - message::OVERHEAD) as u8;
        for n in 1..90u8 {
            let damages = [
                // Line n says that it is the next one, which is as long as two.
                vec![(n, OFFSET, n + 1), (n + 1, SIZE, two_lines)],
                // Line n is as long as two, and the one after these says that it is the second of them.
                vec![(n, SIZE, two_lines), (n + 2, OFFSET, n + 1)],
                // Those after it say nothing.
                vec![
                    (n, SIZE, two_lines),
                    (n + 2, OFFSET, n + 1),
                    (n + 3, SIZE, 0),
                ],
                // The one after that agrees with what the size says.
                vec![(n, SIZE, two_lines), (n + 3, OFFSET, n + 2)],
            ];
            for damage in damages {
                let left = log.with_bytes(&damage);
                let said = &left.said;
                let is_kept = |line: &Line| log.lines.iter().any(|(it, ..)| it == line);
                assert!(left.lines.iter().all(is_kept), "{damage:?}: {said:?}");
                let (first, last) = (i64::from(n), i64::from(n) + 3);
                let is_far = |(offset, _): &Line| *offset < first || *offset > last;
                let far = |lines: &[Line]| lines.iter().filter(|it| is_far(it)).count();
                assert_eq!(far(&left.lines), 96, "{damage:?}: {said:?}");
            }
        }
    }
}

#[test]
fn what_tells_of_the_end_of_a_log_is_the_same_after_a_restart() {
    let log = same_sizes().without_manifest();
    // Of the offsets of the last lines, as many are wrong as right.
    let damage = [
        (93, SIZE, 1),
        (94, OFFSET, 92),
        (97, OFFSET, 105),
        (98, OFFSET, 96),
    ];
    let left = log.with_bytes(&damage);
    assert_eq!(left.lines.len(), 95, "{:?}", left.said);
    assert_eq!(left.said.len(), 2, "{:?}", left.said);
}

#[test]
fn neighbours_with_the_same_wrong_offset_do_not_confirm_each_other() {
    let log = Damaged::new((0..1000).map(line));
    for (n, bit) in [(0, 16), (0, 4), (500, 3), (500, 20), (998, 2), (998, 30)] {
        let left = log.after(|dir| {
            for n in n..n + 2 {
                log.flip_offset(dir, n, bit);
            }
        });
        // The first has no neighbour with the right one, the second has, unless it is the last line.
        let next = if n < 998 { n + 1 } else { n + 2 };
        let intact = log.lines[..n].iter().chain(&log.lines[next..]);
        let intact = intact.map(|(line, ..)| line);
        assert!(left.lines.iter().eq(intact), "{n}, {bit}: {:?}", left.said);
    }
}

#[test]
fn a_search_for_a_line_that_was_repaired_after_a_damaged_one_finds_it_again() {
    let log = Damaged::new((0..1000).map(line));
    let left = log.after(|dir| {
        log.change(dir, 499, SIZE + 1, |checksum| *checksum ^= 1);
        log.flip_offset(dir, 500, 30);
        log.flip_offset(dir, 501, 0);
    });
    let is_intact = |(offset, _): &&Line| *offset != 499;
    let intact = log.lines.iter().map(|(line, ..)| line).filter(is_intact);
    assert!(left.lines.iter().eq(intact), "{:?}", left.said);
    assert_eq!(left.said.len(), 2, "{:?}", left.said);
}

#[test]
fn what_is_inside_a_value_never_becomes_a_line() {
    // Whatever offset the damage makes plausible, a message with it lies in the value, and another one
    // that ends where the next message does.
    let forged = |offset: i64, more: &[u8]| {
        let mut message = encode(None, Some(b"mallory"), Some(&[b"forged", more].concat()));
        message[..8].copy_from_slice(&offset.to_be_bytes());
        message
    };
    let mut next = encode(None, Some(b"alice"), Some(b"the next line"));
    next[..8].copy_from_slice(&4i64.to_be_bytes());
    let mut value = b"text ".to_vec();
    for offset in [3, 4, 5, 6, 4] {
        value.extend(forged(offset, b""));
        value.extend(b"more");
    }
    value.extend(forged(3, b""));
    value.extend(forged(4, b""));
    let whole = forged(4, &next);
    value.extend(&whole[..whole.len() - next.len()]);
    let messages = (0..3)
        .map(numbered)
        .chain([encode(None, Some(b"alice"), Some(&value))])
        .chain([next.clone()])
        .chain((5..9).map(numbered));
    let log = Damaged::new(messages);
    assert!(
        log.files
            .iter()
            .any(|(name, _)| name.ends_with(".lookalikes"))
    );
    let (_, file, carrier) = log.lines[3].clone();
    let check = |left: &Left, what: &dyn std::fmt::Debug| {
        let is_repaired = left.said.iter().any(|said| said.contains("repaired"));
        let is_kept =
            |(_, _, range): &&(Line, usize, Range<usize>)| is_repaired || *range != carrier;
        let expected = log.lines.iter().filter(is_kept).map(|(line, ..)| line);
        assert!(left.lines.iter().eq(expected), "{what:?}: {:?}", left.said);
        assert_eq!(left.said.len(), 1, "{what:?}: {:?}", left.said);
    };
    for at in carrier.clone() {
        check(&log.flipped(&[at]), &at);
    }
    // The size leads to any place in the value, and something else is damaged, too.
    for size in 0..value.len() as i32 {
        let left = log.after(|dir| {
            let path = dir.join(&log.files[file].0);
            let mut bytes = fs::read(&path).unwrap();
            bytes[carrier.start + 8..carrier.start + 12].copy_from_slice(&size.to_be_bytes());
            bytes[carrier.start + 20] ^= 1;
            fs::write(&path, bytes).unwrap();
        });
        check(&left, &size);
    }
    // Nothing is left of its beginning.
    for end in carrier.clone().skip(8) {
        let left = log.after(|dir| {
            let path = dir.join(&log.files[file].0);
            let mut bytes = fs::read(&path).unwrap();
            bytes[carrier.start..end].fill(0);
            fs::write(&path, bytes).unwrap();
        });
        check(&left, &end);
    }
}

#[test]
fn notes_of_lookalikes_that_are_lost_cost_no_line() {
    let mut forged = encode(None, Some(b"mallory"), Some(b"forged"));
    forged[..8].copy_from_slice(&7i64.to_be_bytes());
    let carrier = |n: usize| match n.is_multiple_of(5) {
        true => encode(None, Some(b"alice"), Some(&forged)),
        false => line(n),
    };
    let log = Damaged::new((0..20).map(carrier));
    let is_note = |(name, _): &&(String, Vec<u8>)| name.ends_with(".lookalikes");
    let (note, bytes) = log.files.iter().find(is_note).unwrap();
    type Damage<'a> = &'a dyn Fn(&Path);
    let damages: [Damage<'_>; 4] = [
        &|note| fs::remove_file(note).unwrap(),
        &|note| fs::write(note, vec![0; bytes.len()]).unwrap(),
        &|note| fs::write(note, vec![0xff; bytes.len()]).unwrap(),
        &|note| fs::write(note, &bytes[..bytes.len() - 1]).unwrap(),
    ];
    for damage in damages {
        let left = log.after(|dir| damage(&dir.join(note)));
        assert!(
            left.lines
                .iter()
                .eq(log.lines.iter().map(|(line, ..)| line))
        );
        assert_eq!(left.appended, 20);
        assert!(left.said.is_empty(), "{:?}", left.said);
    }
}
