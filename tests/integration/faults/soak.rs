//! Programs that stay open while others come and go use no more memory and descriptors.
//!
//! `KAFKA_CHAT_TEST_SOAK` is for how many seconds (600).

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use super::full::print_figures;
use crate::support::{Kafka, kilobytes, setting, user};
use crate::tty::{CTRL_D, Tty};

/// How many pairs come and go, by turns.
const PAIRS: usize = 8;

/// How many lines each of a pair sends before it leaves.
const LINES: usize = 25;

/// By how much the memory of a process may grow: noise of the allocator, and of caches with a limit.
const NOISE_KB: u64 = 1536;

/// By how much its descriptors may: connections of programs that have just left may still be open.
const NOISE_DESCRIPTORS: usize = 8;

/// How many rounds it takes at least to compare fifths of them.
const LEAST_ROUNDS: usize = 10;

/// How long it goes on.
fn length() -> Duration {
    let given = std::env::var("KAFKA_CHAT_TEST_SOAK").ok();
    Duration::from_secs(given.map_or(600, |seconds| seconds.parse().unwrap()))
}

/// What a process uses at one time.
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

/// The medians of some observations.
fn medians(seen: &[Usage]) -> Usage {
    fn median<T: Ord + Copy>(mut all: Vec<T>) -> T {
        all.sort_unstable();
        all[all.len() / 2]
    }
    Usage {
        kilobytes: median(seen.iter().map(|usage| usage.kilobytes).collect()),
        descriptors: median(seen.iter().map(|usage| usage.descriptors).collect()),
    }
}

/// One of two sends a line, and the other shows it.
#[track_caller]
fn say(from: &Tty, to: &Tty, text: &str) {
    from.line(text);
    to.wait_for(text);
}

/// Opens and ends chats beside programs that stay open, and compares what these use in the second
/// fifth of the rounds with what they use in the last.
fn soak(what: &str, on: &Kafka, host: Option<u32>) {
    let (ann, ben, topic) = (user("ann"), user("ben"), user("topic"));
    let [at_ann, at_ben] = [on.chat(&ann, &ben), on.chat(&ben, &ann)];
    let reader = on.reader(&topic);
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
    while start.elapsed() < length || rounds < LEAST_ROUNDS {
        let (me, peer) = &pairs[rounds % PAIRS];
        let [here, there] = [on.chat(me, peer), on.chat(peer, me)];
        for n in 0..LINES {
            say(&here, &there, &format!("to {rounds}.{n}."));
            say(&there, &here, &format!("fro {rounds}.{n}."));
            say(&at_ann, &at_ben, &format!("ping {rounds}.{n}."));
            say(&at_ben, &at_ann, &format!("pong {rounds}.{n}."));
            let line = format!("line {rounds}.{n}.\n");
            writer.write(&line);
            reader.wait_for(&line);
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

    print_figures(format_args!(
        "{what}: {rounds} pairs came and went within {} s and sent {lines} lines",
        start.elapsed().as_secs()
    ));
    let mut grown = Vec::new();
    for (name, all) in &seen {
        let fifth = all.len() / 5;
        let (early, late) = (
            medians(&all[fifth..2 * fifth]),
            medians(&all[all.len() - fifth..]),
        );
        print_figures(format_args!(
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
fn embedded_programs_that_stay_open_do_not_grow() {
    let on = Kafka::embedded();
    let host = on.host();
    soak("embedded", &on.by_address(), Some(host.pid()));
}

#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_has_clients_that_do_not_grow_while_they_stay_open() {
    let version = setting("KAFKA_CHAT_TEST_VERSION");
    soak(&format!("Kafka {version}"), &Kafka::real(), None);
}
