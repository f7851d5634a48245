use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::broker::Report;
use crate::broker::message::{
    self,
    tests::{any_message, encode},
};

mod damage;
mod folder;

/// Small segments.
fn small() -> Config {
    Config {
        retention_bytes: u64::MAX,
        segment_bytes: 300,
        max_topics: 100,
        ..Config::default()
    }
}

fn open(dir: &TempDir, config: &Config) -> Log {
    Log::open(dir.path(), "127.0.0.1:9092", &Arc::new(config.clone())).unwrap()
}

/// The topic `bob`, which is created if it does not exist.
fn bob(log: &Log) -> Arc<Topic> {
    log.create_topic("bob").unwrap();
    log.topic("bob").unwrap()
}

/// All messages from `offset` on, in reads of `max_bytes` or, for a longer message, more. Offsets are
/// checked, and left out.
fn read_from(topic: &Topic, mut offset: i64, max_bytes: usize) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let end = topic.offsets().unwrap().end;
    let mut max_bytes = max_bytes;
    while offset < end {
        let mut set = Vec::new();
        assert_eq!(
            topic
                .read(offset, |all| all.min(max_bytes), &mut set)
                .unwrap(),
            end
        );
        assert!(set.len() <= max_bytes);
        let before = offset;
        let mut rest = set.as_slice();
        while let Some((found, size)) = message::header(rest)
            && size <= rest.len()
        {
            assert_eq!(found, offset);
            messages.push(rest[8..size].to_vec());
            rest = &rest[size..];
            offset += 1;
        }
        if offset == before {
            max_bytes *= 2;
        }
    }
    messages
}

fn without_offset(messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    messages.iter().map(|m| m[8..].to_vec()).collect()
}

fn numbered(n: usize) -> Vec<u8> {
    encode(None, Some(b"alice"), Some(format!("line {n}").as_bytes()))
}

/// The topic's files by name, sorted.
fn files(dir: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.path().join("bob-0")).unwrap();
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

/// The files of its segments.
fn segments(dir: &TempDir) -> Vec<PathBuf> {
    let mut files = files(dir);
    files.retain(|path| path.extension().is_some_and(|it| it == "log"));
    files
}

/// Four messages in one closed log, and the file that they are in.
fn four_messages(dir: &TempDir) -> (Vec<Vec<u8>>, PathBuf) {
    let messages: Vec<_> = (0..4).map(numbered).collect();
    bob(&open(dir, &small()))
        .append(&mut messages.concat())
        .unwrap();
    (messages, segments(dir).remove(0))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_was_appended_is_read_from_every_offset_even_after_a_restart(
        sets in prop::collection::vec(prop::collection::vec(any_message(), 1..5), 1..12),
        reopen in any::<prop::sample::Index>(),
        max_bytes in 1usize..500,
    ) {
        let dir = TempDir::new().unwrap();
        let mut log = open(&dir, &small());
        let mut all = Vec::new();
        for (i, set) in sets.iter().enumerate() {
            if i == reopen.index(sets.len()) {
                drop(log);
                log = open(&dir, &small());
            }
            prop_assert_eq!(bob(&log).append(&mut set.concat()).unwrap(), all.len() as i64);
            all.extend(without_offset(set));
        }
        for reopened in [false, true] {
            if reopened {
                drop(log);
                log = open(&dir, &small());
            }
            let bob = bob(&log);
            prop_assert_eq!(bob.offsets().unwrap(), 0..all.len() as i64);
            for offset in 0..=all.len() {
                prop_assert_eq!(&read_from(&bob, offset as i64, max_bytes)[..], &all[offset..]);
            }
            let mut out = Vec::new();
            for offset in [-1, all.len() as i64 + 1, i64::MAX, i64::MIN] {
                let read = bob.read(offset, |all| all.min(100), &mut out);
                prop_assert_eq!(read, Err(code::OFFSET_OUT_OF_RANGE));
            }
        }
    }
}

#[test]
fn a_message_torn_at_any_byte_is_set_aside_and_its_offset_is_not_given_again() {
    let dir = TempDir::new().unwrap();
    let (messages, file) = four_messages(&dir);
    let whole = fs::read(&file).unwrap();
    let size = messages[0].len();
    for cut in 0..=whole.len() {
        fs::remove_dir_all(dir.path().join("bob-0")).unwrap();
        fs::create_dir(dir.path().join("bob-0")).unwrap();
        fs::write(&file, &whole[..cut]).unwrap();
        let (kept, torn) = (cut / size, cut % size);
        let next = (kept + usize::from(torn > 0)) as i64;
        for _ in 0..2 {
            let log = open(&dir, &small());
            let bob = bob(&log);
            assert_eq!(bob.offsets().unwrap(), 0..kept as i64, "cut at {cut}");
        }
        let log = open(&dir, &small());
        assert_eq!(bob(&log).append(&mut numbered(9)).unwrap(), next);
        let aside = fs::read(file.with_extension("torn")).unwrap_or_default();
        assert_eq!(aside, whole[kept * size..cut], "cut at {cut}");
        drop(log);
        let log = open(&dir, &small());
        let mut found = Vec::new();
        bob(&log)
            .read(next, |all| all.min(1000), &mut found)
            .unwrap();
        assert_eq!(found[8..], numbered(9)[8..], "cut at {cut}");
        let mut first = Vec::new();
        bob(&log).read(0, |all| all.min(1000), &mut first).unwrap();
        let expected = if kept > 0 { kept * size } else { size };
        assert_eq!(
            first.len(),
            expected + if torn == 0 && kept > 0 { size } else { 0 }
        );
    }
}

#[test]
fn the_oldest_segments_are_deleted_when_a_topic_grows_too_large() {
    let dir = TempDir::new().unwrap();
    let config = Config {
        retention_bytes: 1000,
        ..small()
    };
    let log = open(&dir, &config);
    for n in 0..200 {
        bob(&log).append(&mut numbered(n)).unwrap();
        let bytes: u64 = segments(&dir)
            .iter()
            .map(|f| f.metadata().unwrap().len())
            .sum();
        assert!(bytes < 1000 + 300, "{bytes}");
    }
    let kept = bob(&log).offsets().unwrap();
    assert_eq!(kept.end, 200);
    let bytes: u64 = segments(&dir)
        .iter()
        .map(|f| f.metadata().unwrap().len())
        .sum();
    assert!(bytes >= 1000);
    let name = format!("{:020}.log", kept.start);
    assert_eq!(segments(&dir)[0].file_name().unwrap(), name.as_str());
    let mut out = Vec::new();
    let below = bob(&log).read(kept.start - 1, |all| all.min(100), &mut out);
    assert_eq!(below, Err(code::OFFSET_OUT_OF_RANGE));
    drop(log);
    assert_eq!(bob(&open(&dir, &config)).offsets().unwrap(), kept);
}

#[test]
fn the_index_finds_every_message() {
    let dir = TempDir::new().unwrap();
    let config = Config {
        segment_bytes: 10 * INDEX_INTERVAL,
        ..small()
    };
    let log = open(&dir, &config);
    let mut lines = Vec::new();
    for n in 0..4000 {
        // Some are longer than the distance between two entries.
        let long = if n % 500 == 7 { 40_000 } else { 1 + n % 97 };
        lines.push(encode(Some(n as i64), None, Some(&vec![b'x'; long])));
    }
    for set in lines.chunks(37) {
        bob(&log).append(&mut set.concat()).unwrap();
    }
    assert!(segments(&dir).len() > 2);
    let mut log = log;
    for reopened in [false, true] {
        if reopened {
            drop(log);
            log = open(&dir, &config);
        }
        let bob = bob(&log);
        for (offset, line) in lines.iter().enumerate() {
            let mut out = Vec::new();
            bob.read(offset as i64, |all| all.min(line.len()), &mut out)
                .unwrap();
            assert_eq!(message::header(&out), Some((offset as i64, line.len())));
            assert_eq!(out[8..], line[8..]);
        }
        let segments = bob.segments().unwrap();
        for segment in segments.iter() {
            let entries = segment.index.as_ref().unwrap().len() as u64;
            assert!(entries >= 2 && entries <= 1 + segment.len / INDEX_INTERVAL);
        }
    }
}

#[test]
fn a_read_of_the_newest_messages_reads_nothing_before_them() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, &small());
    let bob = bob(&log);
    for n in 0..20 {
        let set = [numbered(2 * n), numbered(2 * n + 1)].concat();
        bob.append(&mut set.clone()).unwrap();
        let file = OpenOptions::new()
            .write(true)
            .open(segments(&dir).pop().unwrap())
            .unwrap();
        let before = file.metadata().unwrap().len() as usize - set.len();
        file.write_all_at(&vec![0; before], 0).unwrap();
        assert_eq!(
            read_from(&bob, 2 * n as i64, 1000),
            without_offset(&[numbered(2 * n), numbered(2 * n + 1)])
        );
    }
    assert!(segments(&dir).len() > 2);
}

#[test]
fn few_files_stay_open_and_none_of_full_segments() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, &small());
    let topics = MAX_OPEN + 3;
    let open_paths = |log: &Log| -> Vec<_> {
        let files = lock(&log.open_files.0);
        files.iter().map(|open| open.path.clone()).collect()
    };
    for n in 0..20 {
        for t in 0..topics {
            let name = format!("topic{t}");
            log.create_topic(&name).unwrap();
            let topic = log.topic(&name).unwrap();
            assert_eq!(topic.append(&mut numbered(n)).unwrap(), n as i64);
            let newest = read_from(&topic, n as i64, 1000);
            assert_eq!(newest, without_offset(&[numbered(n)]));
        }
        assert_eq!(open_paths(&log).len(), MAX_OPEN);
    }
    let all: Vec<_> = (0..20).map(numbered).collect();
    for name in log.topic_names() {
        let topic = log.topic(&name).unwrap();
        assert_eq!(read_from(&topic, 0, 1000), without_offset(&all));
    }
    for n in 0..20 {
        bob(&log).append(&mut numbered(n)).unwrap();
        let open = open_paths(&log);
        let bobs: Vec<_> = open.iter().filter(|p| segments(&dir).contains(p)).collect();
        assert_eq!(bobs, [segments(&dir).last().unwrap()]);
    }
    log.release();
    assert!(open_paths(&log).is_empty());
}

#[test]
fn nothing_is_appended_to_a_file_that_was_moved() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, &small());
    bob(&log).append(&mut numbered(0)).unwrap();
    let (folder, aside) = (dir.path().join("bob-0"), dir.path().join("aside"));
    fs::rename(&folder, &aside).unwrap();
    // A copy is another file.
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(&aside).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    assert_eq!(bob(&log).append(&mut numbered(1)).unwrap(), 1);
    let expected = without_offset(&[numbered(0), numbered(1)]);
    assert_eq!(read_from(&bob(&log), 0, 1000), expected);
    drop(log);
    let log = open(&dir, &small());
    assert_eq!(read_from(&bob(&log), 0, 1000), expected);
    bob(&log).append(&mut numbered(2)).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let appended = bob(&log).append(&mut numbered(3));
    assert_eq!(appended, Err(code::KAFKA_STORAGE_ERROR));
}

#[test]
fn after_a_file_was_deleted_or_cut_the_log_goes_on_without_a_hole() {
    let size = numbered(0).len();
    for left in [None, Some(size + 3)] {
        let dir = TempDir::new().unwrap();
        let log = open(&dir, &small());
        for n in 0..3 {
            bob(&log).append(&mut numbered(n)).unwrap();
        }
        let file = segments(&dir).remove(0);
        match left {
            None => fs::remove_file(&file).unwrap(),
            Some(len) => {
                let file = OpenOptions::new().write(true).open(&file).unwrap();
                file.set_len(len as u64).unwrap();
            }
        }
        for n in 3..5 {
            assert_eq!(bob(&log).append(&mut numbered(n)).unwrap(), n as i64);
        }
        let after = without_offset(&[numbered(3), numbered(4)]);
        assert_eq!(read_from(&bob(&log), 3, 1000), after);
        let mut kept = Vec::new();
        bob(&log).read(0, |all| all.min(1000), &mut kept).unwrap();
        let first = numbered(if left.is_some() { 0 } else { 3 });
        assert_eq!(kept[8..first.len()], first[8..], "{left:?}");

        drop(log);
        let log = open(&dir, &small());
        assert_eq!(read_from(&bob(&log), 3, 1000), after);
        assert_eq!(bob(&log).append(&mut numbered(5)).unwrap(), 5);
        if left.is_some() {
            let mut kept = Vec::new();
            bob(&log).read(0, |all| all.min(1000), &mut kept).unwrap();
            assert_eq!(kept[8..], numbered(0)[8..]);
        }
    }
}

#[test]
fn messages_that_cannot_be_written_leave_the_log_as_it_was() {
    let dir = TempDir::new().unwrap();
    let config = Config {
        segment_bytes: 1 << 20,
        ..small()
    };
    let log = open(&dir, &config);
    bob(&log).append(&mut numbered(0)).unwrap();
    let file = segments(&dir).remove(0);
    let aside = dir.path().join("aside");
    fs::rename(&file, &aside).unwrap();
    fs::create_dir(&file).unwrap();
    for _ in 0..3 {
        // Long enough to be indexed, if it were written.
        let long = encode(None, None, Some(&[b'x'; 2 * INDEX_INTERVAL as usize]));
        let appended = bob(&log).append(&mut [long, numbered(1)].concat());
        assert_eq!(appended, Err(code::KAFKA_STORAGE_ERROR));
    }
    fs::remove_dir(&file).unwrap();
    fs::rename(&aside, &file).unwrap();
    // Neither may the bytes of a failed write that could not be removed.
    let mut left = [numbered(1), numbered(1)].concat();
    message::assign_offsets(&mut left, 1, |_, _| ());
    fs::write(&file, [fs::read(&file).unwrap(), left].concat()).unwrap();
    assert_eq!(bob(&log).append(&mut numbered(2)).unwrap(), 1);
    let expected = without_offset(&[numbered(0), numbered(2)]);
    assert_eq!(read_from(&bob(&log), 0, 1000), expected);
    drop(log);
    assert_eq!(read_from(&bob(&open(&dir, &small())), 0, 1000), expected);
}

#[test]
fn an_append_wakes_up_the_threads_that_watch_the_topic() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, &small());
    let bob = bob(&log);
    let (tx, rx) = mpsc::channel();
    let deadline = Duration::from_secs(60);
    let watcher = {
        let bob = Arc::clone(&bob);
        thread::spawn(move || {
            bob.watch();
            tx.send(()).unwrap();
            while bob.offsets().unwrap().is_empty() {
                // Longer than anybody waits for it to wake up.
                thread::park_timeout(2 * deadline);
            }
            tx.send(()).unwrap();
        })
    };
    rx.recv_timeout(deadline).expect("the thread watches");
    bob.append(&mut numbered(0)).unwrap();
    rx.recv_timeout(deadline).expect("the thread wakes up");
    watcher.join().unwrap();
}

#[test]
fn threads_that_watched_a_topic_leave_no_memory_behind() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, &small());
    let bob = bob(&log);
    for is_appended in [false, true] {
        let watchers: Vec<_> = (0..50)
            .map(|_| {
                let bob = Arc::clone(&bob);
                thread::spawn(move || {
                    bob.watch();
                    if !is_appended {
                        bob.unwatch();
                    }
                })
            })
            .collect();
        for watcher in watchers {
            watcher.join().unwrap();
        }
        if is_appended {
            bob.append(&mut numbered(0)).unwrap();
        }
        assert_eq!(lock(&bob.watchers).capacity(), 0);
    }
}

#[test]
fn topics_are_loaded_one_after_the_other() {
    let dir = TempDir::new().unwrap();
    four_messages(&dir);
    let log = open(&dir, &small());
    let bob = bob(&log);
    let turn = lock(&log.loading);
    thread::scope(|scope| {
        let loads = scope.spawn(|| bob.offsets().unwrap());
        assert!(!loads.is_finished());
        drop(turn);
        assert_eq!(loads.join().unwrap(), 0..4);
        let _turn = lock(&log.loading);
        // It is loaded.
        assert_eq!(bob.offsets().unwrap(), 0..4);
    });
}

#[test]
fn a_message_is_found_by_a_timestamp_in_the_future() {
    let dir = TempDir::new().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    let (soon, later) = (now + 30 * 60_000, now + 60 * 60_000);
    let at = |time| encode(Some(time), None, Some(&[b'x'; 200]));
    let log = open(&dir, &small());
    // Each has a segment for itself.
    for time in [later, now, now] {
        bob(&log).append(&mut at(time)).unwrap();
    }
    assert!(segments(&dir).len() > 2);
    let mut log = log;
    for is_reopened in [false, true] {
        if is_reopened {
            drop(log);
            log = open(&dir, &small());
        }
        let found = bob(&log).first_since(soon, || Ok(())).unwrap();
        assert_eq!(found, Some((0, later)));
        // Once all segments are known, none is read that has no such time.
        for is_known in [false, true] {
            let mut turns = 0;
            let found = bob(&log).first_since(later + 1, || {
                turns += 1;
                Ok(())
            });
            assert_eq!(found.unwrap(), None);
            assert!(!is_known || turns == 0);
        }
    }
}

#[test]
fn a_message_is_found_by_its_timestamp() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir, &small());
    bob(&log).append(&mut numbered(0)).unwrap();
    for n in 1..50 {
        bob(&log)
            .append(&mut encode(Some(n * 10), None, Some(b"x")))
            .unwrap();
    }
    for (time, found) in [
        (0, Some((1, 10))),
        (10, Some((1, 10))),
        (11, Some((2, 20))),
        (490, Some((49, 490))),
        (491, None),
        (i64::MAX, None),
    ] {
        assert_eq!(
            bob(&log).first_since(time, || Ok(())).unwrap(),
            found,
            "{time}"
        );
    }
    assert_eq!(bob(&log).segments_until(0).unwrap(), Vec::<i64>::new());
    let all = bob(&log).segments_until(i64::MAX).unwrap();
    assert_eq!(all.last(), Some(&0));
    assert_eq!(all.len(), segments(&dir).len());
}
