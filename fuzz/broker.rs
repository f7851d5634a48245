//! What the targets call, as a module of the broker, whose private parts it uses. Each takes bytes
//! from outside, and must not panic.
//!
//! Wrong checksums would keep random bytes from most of the code, so the bytes are used as they are
//! and again with the right checksums.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, OnceLock};

use super::log::Log;
use super::{Config, Report, message};
use crate::wire::{Request, code};

/// The only segment of a log, and what is beside it.
const SEGMENT: &str = "00000000000000000000.log";
const NOTES: &str = "00000000000000000000.lookalikes";
const MANIFEST: &str = "manifest";

/// A request, and the messages in it.
pub fn wire(mut request: Vec<u8>) {
    let Ok((header, request)) = Request::read(&mut request, usize::MAX) else {
        return;
    };
    let mut written = request.write(&header).split_off(4);
    if header.is_spoken(request.api_key()) {
        let read = Request::read(&mut written, usize::MAX).expect("what was written can be read");
        assert_eq!((header, &request), (read.0, &read.1));
    }
    if let Request::Produce(body) = request {
        for partition in body.topics.into_iter().flat_map(|topic| topic.partitions) {
            append(&mut partition.records.to_vec());
            seal(partition.records);
            append(partition.records);
        }
    }
}

/// What an append does to messages, and then a fetch by an old client.
fn append(set: &mut [u8]) {
    if message::check_set(set).is_err() {
        return;
    }
    let mut count = 0;
    let end = message::assign_offsets(set, 7, |_, _| count += 1);
    assert_eq!(end, 7 + count, "every message has an offset");
    message::check_set(set).expect("offsets are not in the checksum");
    let mut old = set.to_vec();
    message::down_convert(&mut old, 0);
    message::check_set(&old).expect("a converted set is whole");
    let mut converted = 0;
    message::assign_offsets(&mut old, 7, |_, _| converted += 1);
    assert_eq!(converted, count, "no message is lost");
}

/// A segment file, in a folder for this call alone.
pub fn log(dir: &Path, segment: &[u8]) {
    open(dir, &[(SEGMENT, segment)]);
    let mut sealed = segment.to_vec();
    seal(&mut sealed);
    open(dir, &[(SEGMENT, &sealed)]);
    // What earlier versions left has no manifest.
    damage(dir, segment, segment.len() % 2 == 0);
}

/// A log of one topic, and what is said about it.
fn open_log(dir: &Path) -> (Log, Receiver<String>) {
    let (tx, said) = mpsc::channel();
    let config = Config {
        retention_bytes: 1 << 20,
        segment_bytes: 1 << 20,
        max_topics: 2,
        // Nobody may be left who reads it.
        report: Report::to(move |report| drop(tx.send(report.to_string()))),
        ..Config::default()
    };
    let log = Log::open(dir, "127.0.0.1:1", &Arc::new(config)).expect("a log");
    (log, said)
}

/// The folder of the only topic, which is empty.
fn new_folder(dir: &Path) -> PathBuf {
    let topic_dir = dir.join("bob-0");
    // From the last call, if there was one.
    let _ = fs::remove_dir_all(&topic_dir);
    fs::create_dir_all(&topic_dir).expect("a folder");
    topic_dir
}

/// Opens a log with these files, reads all of it, and appends to it. Returns what was read, each offset and the message
/// without it, and what was said.
fn open(dir: &Path, files: &[(&str, &[u8])]) -> (Vec<(i64, Vec<u8>)>, Vec<String>) {
    let folder = new_folder(dir);
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).expect("a file");
    }
    let (log, said) = open_log(dir);
    let topic = log.topic("bob").expect("the topic");
    let readable = topic.offsets().expect("its offsets");
    let mut all = Vec::new();
    let mut offset = readable.start;
    while offset < readable.end {
        let mut read = Vec::new();
        let end = topic.read(offset, |all| all, &mut read);
        assert_eq!(end.expect("the log can be read"), readable.end);
        assert!(!read.is_empty(), "a reader is never stuck");
        let mut at = 0;
        while let Some((found, size)) = message::header(&read[at..]) {
            assert!(found >= offset, "no message is read twice");
            message::check(&read[at..at + size]).expect("only whole messages are kept");
            all.push((found, read[at + 8..at + size].to_vec()));
            offset = found + 1;
            at += size;
        }
        assert_eq!(at, read.len(), "only whole messages are kept");
    }
    topic.first_since(0, || Ok(())).expect("a search by time");
    let mut one = encode(b"x");
    let appended = topic.append(&mut one).expect("room for one more");
    assert!(appended >= readable.end, "no offset is given twice");
    let mut read = Vec::new();
    topic
        .read(appended, |all| all, &mut read)
        .expect("it can be read");
    assert_eq!(read, one);
    let beyond = topic.read(appended + 2, |all| all.min(1), &mut read);
    assert_eq!(beyond, Err(code::OFFSET_OUT_OF_RANGE));
    log.release();
    drop((topic, log));
    (all, said.iter().collect())
}

/// Damages a log of a hundred messages at the places that `bytes` name, each by two of them: no
/// message that is read was changed, and there are not more missing than were damaged or lie between
/// two that were and are close to each other. All damage is reported.
fn damage(dir: &Path, bytes: &[u8], has_manifest: bool) {
    static LOG: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    let [whole, notes, manifest] = LOG.get_or_init(|| hundred_messages(dir));
    let mut segment = whole.clone();
    for pair in bytes.chunks_exact(2).take(20) {
        let at = usize::from(u16::from_be_bytes([pair[0], pair[1]])) % segment.len();
        segment[at] ^= 1 << (pair[0] % 8);
    }
    let (mut messages, mut is_damaged, mut can_be_repaired) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = 0;
    while let Some((_, size)) = message::header(&whole[at..]) {
        let (message, found) = (&whole[at..at + size], &segment[at..at + size]);
        messages.push(&message[8..]);
        is_damaged.push(message != found);
        can_be_repaired.push(message[8..] == found[8..]);
        at += size;
    }
    let files = [
        (SEGMENT, &segment[..]),
        (NOTES, notes),
        (MANIFEST, manifest),
    ];
    let (read, said) = open(dir, &files[..if has_manifest { 3 } else { 2 }]);
    for (offset, message) in &read {
        let n = *offset as usize;
        assert_eq!(
            Some(&&message[..]),
            messages.get(n),
            "message {n} is another"
        );
        assert!(
            !is_damaged[n] || can_be_repaired[n],
            "message {n} was damaged"
        );
    }
    let was_read = |n: usize| read.iter().any(|(offset, _)| *offset == n as i64);
    // Damaged offsets and sizes after it can keep a search from finding one between them. Without a manifest, nothing says
    // either that the last one is the last.
    let any_damaged = |of: Range<usize>| is_damaged[of].contains(&true);
    let is_end_near = |n: usize| !has_manifest && n + 20 > 100;
    let near = |n: usize| {
        any_damaged(n.saturating_sub(20)..n) && (any_damaged(n..100.min(n + 20)) || is_end_near(n))
    };
    for n in (0..100).filter(|n| !is_damaged[*n] && !was_read(*n)) {
        assert!(near(n), "message {n} is missing");
    }
    assert_eq!(said.is_empty(), !is_damaged.contains(&true), "{said:?}");
}

/// The segment of a hundred messages with numbered values, its notes, and the manifest. In some values is a whole message
/// with the next offset.
fn hundred_messages(dir: &Path) -> [Vec<u8>; 3] {
    let folder = new_folder(dir);
    let (log, _said) = open_log(dir);
    let topic = log.topic("bob").expect("the topic");
    for n in 0..100 {
        let mut value = format!("line {n}").into_bytes();
        if n % 10 == 5 {
            let mut forged = encode(b"forged");
            message::set_offset(&mut forged, n + 1);
            value.extend(forged);
        }
        let appended = topic.append(&mut encode(&value));
        assert_eq!(appended, Ok(n), "every message has the next offset");
    }
    log.release();
    [SEGMENT, NOTES, MANIFEST].map(|name| {
        let bytes = fs::read(folder.join(name)).expect("a file");
        assert!(!bytes.is_empty(), "{name} is empty");
        bytes
    })
}

/// A message of magic 0 without a key.
fn encode(value: &[u8]) -> Vec<u8> {
    let size = (14 + value.len()) as i32;
    let head = [&[0; 8][..], &size.to_be_bytes(), &[0; 6], &[0xff; 4]].concat();
    let mut message = [&head, &(value.len() as i32).to_be_bytes()[..], value].concat();
    seal(&mut message);
    message
}

/// Gives all whole messages the right checksums.
fn seal(set: &mut [u8]) {
    let mut at = 0;
    while let Some((_, size)) = message::header(&set[at..]) {
        let Some(message) = set.get_mut(at..at.saturating_add(size)) else {
            return;
        };
        if let Some((head, body)) = message.split_at_mut_checked(message::OVERHEAD + 4) {
            let sum = crc32fast::hash(body);
            head[message::OVERHEAD..].copy_from_slice(&sum.to_be_bytes());
        }
        at += size;
    }
}
