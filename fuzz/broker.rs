//! What the targets call, as a module of the broker, whose private parts it uses. Each takes bytes
//! from outside, and must not panic.
//!
//! Wrong checksums would keep random bytes from most of the code, so the bytes are used as they are
//! and again with the right checksums.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::log::Log;
use super::{Config, message};
use crate::wire::{Request, code};

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
    open(dir, segment);
    let mut sealed = segment.to_vec();
    seal(&mut sealed);
    open(dir, &sealed);
    damage(dir, segment);
}

/// Opens a log with this segment, reads all of it, and appends to it. Returns what was read: each
/// offset, and the message without it.
fn open(dir: &Path, segment: &[u8]) -> Vec<(i64, Vec<u8>)> {
    let topic_dir = dir.join("bob-0");
    // From the last call, if there was one.
    let _ = fs::remove_dir_all(&topic_dir);
    fs::create_dir_all(&topic_dir).expect("a folder");
    fs::write(topic_dir.join(format!("{:020}.log", 0)), segment).expect("a file");
    let config = Config {
        retention_bytes: 1 << 20,
        segment_bytes: 1 << 20,
        max_topics: 2,
        ..Config::default()
    };
    let log = Log::open(dir, "127.0.0.1:1", &Arc::new(config)).expect("a log");
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
    let mut one = MESSAGE.to_vec();
    seal(&mut one);
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
    all
}

/// Damages a log of a hundred messages at the places that `bytes` name, each by two of them: no
/// message that is read was changed, and there are not more missing than were damaged or lie between
/// two that were.
fn damage(dir: &Path, bytes: &[u8]) {
    let mut one = MESSAGE.to_vec();
    seal(&mut one);
    let mut segment = one.repeat(100);
    message::assign_offsets(&mut segment, 0, |_, _| ());
    let whole = segment.clone();
    let mut is_damaged = [false; 100];
    for pair in bytes.chunks_exact(2).take(20) {
        let at = usize::from(u16::from_be_bytes([pair[0], pair[1]])) % segment.len();
        segment[at] ^= 1 << (pair[0] % 8);
    }
    for (n, is_damaged) in is_damaged.iter_mut().enumerate() {
        let place = n * one.len()..(n + 1) * one.len();
        *is_damaged = segment[place.clone()] != whole[place];
    }
    let read = open(dir, &segment);
    for (offset, message) in &read {
        assert_eq!(message, &one[8..], "message {offset} is another");
        let was_damaged = is_damaged.get(*offset as usize);
        assert_eq!(was_damaged, Some(&false), "message {offset} was damaged");
    }
    let was_read = |n: usize| read.iter().any(|(offset, _)| *offset == n as i64);
    let near = |n: usize| is_damaged[n.saturating_sub(1)] && is_damaged.get(n + 1) != Some(&false);
    for n in (0..100).filter(|n| !is_damaged[*n] && !was_read(*n)) {
        assert!(near(n), "message {n} is missing");
    }
}

/// A message of magic 0 without a key, value `x`, and still without a checksum.
const MESSAGE: [u8; 27] = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 1, b'x',
];

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
