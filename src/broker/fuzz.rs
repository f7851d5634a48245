//! The doors for `fuzz/`: each takes bytes as they may come from outside, and must not panic.
//!
//! Checksums would keep random bytes out of most of the code, so the bytes are taken as they are
//! and again with the checksums put right.

use std::fs;
use std::path::Path;

use super::log::{Limits, Log, NotRead};
use super::message;
use super::wire::{self, Request};

/// A request, and where it is to produce, the messages that it brings.
pub fn wire(mut request: Vec<u8>) {
    let Ok((_, Request::Produce { topics, .. })) = wire::parse(&mut request) else {
        return;
    };
    for partition in topics.into_iter().flat_map(|topic| topic.partitions) {
        take(&mut partition.records.to_vec());
        seal(partition.records);
        take(partition.records);
    }
}

/// What an append does, and what a fetch by an old client does to it.
fn take(set: &mut [u8]) {
    if message::check_set(set).is_err() {
        return;
    }
    let mut count = 0;
    let end = message::assign_offsets(set, 7, |_, _| count += 1);
    assert_eq!(end, 7 + count, "every message has an offset");
    message::check_set(set).expect("offsets are not in the checksum");
    let mut old = set.to_vec();
    message::down_convert(&mut old, 0);
    message::check_set(&old).expect("what is converted is whole");
    let mut converted = 0;
    message::assign_offsets(&mut old, 7, |_, _| converted += 1);
    assert_eq!(converted, count, "no message is lost");
}

/// A segment file, in a folder that nobody else uses.
pub fn log(dir: &Path, segment: &[u8]) {
    open(dir, segment);
    let mut segment = segment.to_vec();
    seal(&mut segment);
    open(dir, &segment);
}

/// Opens a log with this segment, reads all of it, and appends to it.
fn open(dir: &Path, segment: &[u8]) {
    let topic_dir = dir.join("bob-0");
    // From the time before: there may be none.
    let _ = fs::remove_dir_all(&topic_dir);
    fs::create_dir_all(&topic_dir).expect("a folder");
    fs::write(topic_dir.join(format!("{:020}.log", 0)), segment).expect("a file");
    let limits = Limits {
        retention_bytes: 1 << 20,
        segment_bytes: 1 << 20,
        max_topics: 2,
    };
    let log = Log::open(dir, "127.0.0.1:1", limits).expect("a log");
    let topic = log.topic("bob").expect("the topic");
    let readable = topic.offsets().expect("its offsets");
    let mut offset = readable.start;
    while offset < readable.end {
        let mut read = Vec::new();
        let end = topic.read(offset, usize::MAX, &mut read);
        assert_eq!(end.expect("what is there can be read"), readable.end);
        let mut at = 0;
        while let Some((found, size)) = message::header(&read[at..]) {
            assert!(found >= offset, "nothing comes again");
            message::check(&read[at..at + size]).expect("only whole messages remain");
            offset = found + 1;
            at += size;
        }
        assert_eq!(at, read.len(), "only whole messages remain");
    }
    topic.first_since(0).expect("a search by time");
    let mut one = MESSAGE.to_vec();
    seal(&mut one);
    let appended = topic.append(&mut one).expect("room for one more");
    assert_eq!(appended, readable.end);
    let mut read = Vec::new();
    topic
        .read(appended, usize::MAX, &mut read)
        .expect("it is there");
    assert_eq!(read, one);
    let behind = topic.read(appended + 2, 1, &mut read);
    assert!(matches!(behind, Err(NotRead::OutOfRange)));
    log.release();
}

/// A message of magic 0 without a key, value `x`; its checksum is still to be put in.
const MESSAGE: [u8; 27] = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 1, b'x',
];

/// Puts the checksums of all whole messages right.
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
