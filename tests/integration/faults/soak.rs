//! Programs that stay while others come and go: their memory and their descriptors have to stay, too.
//!
//! `KAFKA_CHAT_TEST_SOAK` says for how many seconds (600).

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use super::away::chat;
use super::full::tell;
use crate::support::{Kafka, kilobytes, setting, user};
use crate::tty::{CTRL_D, Tty};

/// How many pairs come and go, by turns.
const PAIRS: usize = 8;

/// How many lines each of a pair says before it goes.
const LINES: usize = 25;

/// By how much the memory of a process may grow: the noise of an allocator, and of what is kept up to a
/// limit.
const NOISE_KB: u64 = 1536;

/// By how much its descriptors may: what has just left may not be gone altogether.
const NOISE_DESCRIPTORS: usize = 8;

/// How long it goes on.
fn length() -> Duration {
    let given = std::env::var("KAFKA_CHAT_TEST_SOAK").ok();
    Duration::from_secs(given.map_or(600, |seconds| seconds.parse().unwrap()))
}

/// What a process has at some moment.
#[derive(Clone, Copy)]
struct Usage {
    kilobytes: u64,
    descriptors: usize,
}

impl Usage {
    fn of(pid: u32) -> Usage {
        Usage {
            kilobytes: kilobytes(pid, "VmRSS"),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        }
    }
}

/// The medians of a part of what was seen.
fn middle(seen: &[Usage]) -> Usage {
    fn median<T: Ord + Copy>(mut all: Vec<T>) -> T {
        all.sort_unstable();
        all[all.len() / 2]
    }
    Usage {
        kilobytes: median(seen.iter().map(|usage| usage.kilobytes).collect()),
        descriptors: median(seen.iter().map(|usage| usage.descriptors).collect()),
    }
}

/// One of two says something, and the other sees it.
#[track_caller]
fn say(from: &Tty, to: &Tty, text: &str) {
    from.line(text);
    to.wait_for(text);
}

/// Lets pairs come and go, beside programs that stay, and compares what these have in the second
/// fifth of the time with what they have in the last.
fn soak(what: &str, on: &Kafka, host: Option<u32>) {
    let (ann, ben, topic) = (user("ann"), user("ben"), user("topic"));
    let [at_ann, at_ben] = [chat(on, &ann, &ben, &[]), chat(on, &ben, &ann, &[])];
    let reader = on
        .program("subscriber", &[&topic, "--from", "earliest"])
        .start();
    let mut writer = on.program("publisher", &[&ann, &topic]).start();
    let staying: Vec<_> = [
        ("broker", host),
        ("chat", Some(at_ann.pid())),
        ("the other chat", Some(at_ben.pid())),
        ("publisher", Some(writer.pid())),
        ("subscriber", Some(reader.pid())),
    ]
    .into_iter()
    .filter_map(|(name, pid)| Some((name, pid?)))
    .collect();
    let pairs: Vec<_> = (0..PAIRS)
        .map(|n| (user(&format!("eve{n}")), user(&format!("fay{n}"))))
        .collect();

    let mut seen: BTreeMap<&str, Vec<Usage>> = BTreeMap::new();
    let (start, length) = (Instant::now(), length());
    let (mut rounds, mut lines) = (0, 0);
    while start.elapsed() < length {
        let (me, peer) = &pairs[rounds % PAIRS];
        let [here, there] = [chat(on, me, peer, &[]), chat(on, peer, me, &[])];
        for n in 0..LINES {
            say(&here, &there, &format!("to {rounds}.{n}."));
            say(&there, &here, &format!("fro {rounds}.{n}."));
            say(&at_ann, &at_ben, &format!("ping {rounds}.{n}."));
            say(&at_ben, &at_ann, &format!("pong {rounds}.{n}."));
            let line = format!("line {rounds}.{n}.\n");
            writer.write(&line);
            let came = reader.stdout.wait(crate::support::PATIENCE, |read| {
                read.ends_with(line.as_bytes())
            });
            assert!(came, "{line:?} did not come");
            lines += 5;
        }
        for leaving in [here, there] {
            leaving.keys(CTRL_D);
            leaving.ends_with(0);
        }
        for &(name, pid) in &staying {
            seen.entry(name).or_default().push(Usage::of(pid));
        }
        rounds += 1;
    }
    for leaving in [at_ann, at_ben] {
        leaving.keys(CTRL_D);
        leaving.ends_with(0);
    }
    writer.close();
    writer.wait().code(0);

    tell(format_args!(
        "{what}: {rounds} pairs came and went within {} s, {lines} lines were said",
        length.as_secs()
    ));
    let mut grown = Vec::new();
    for (name, all) in &seen {
        assert!(all.len() >= 10, "too few rounds to tell: {}", all.len());
        let fifth = all.len() / 5;
        let (early, late) = (
            middle(&all[fifth..2 * fifth]),
            middle(&all[all.len() - fifth..]),
        );
        tell(format_args!(
            "  {name:<15} memory {:>6} kB, then {:>6} kB; descriptors {:>3}, then {:>3}",
            early.kilobytes, late.kilobytes, early.descriptors, late.descriptors
        ));
        let is_larger = late.kilobytes > early.kilobytes + NOISE_KB;
        if is_larger || late.descriptors > early.descriptors + NOISE_DESCRIPTORS {
            grown.push(*name);
        }
    }
    assert!(grown.is_empty(), "grown: {}", grown.join(", "));
}

#[test]
#[ignore = "takes long"]
fn embedded() {
    let on = Kafka::embedded();
    let host = on.host();
    soak("embedded", &on.by_address(), Some(host.pid()));
}

#[test]
#[ignore = "needs a real Kafka"]
fn one_broker() {
    let version = setting("KAFKA_CHAT_TEST_VERSION");
    soak(&format!("Kafka {version}"), &Kafka::real(), None);
}
