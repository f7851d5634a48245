//! Nothing lost, nothing doubled, nothing out of order, whatever is killed, stopped or cut.
//!
//! Several publishers send numbered lines, something strikes again and again, and at the end the log is
//! compared with what the publishers were given and said. Here are a few rounds of it; `full`, run by
//! `scripts/test-faults`, has many, and real Kafkas.

mod away;
mod check;
mod full;
mod load;
mod proxy;
#[cfg(target_os = "linux")]
mod soak;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kafka_chat::client;
use kafka_chat::wire::{FETCH, PRODUCE};

use self::check::{Report, check};
use self::load::{Chance, Load, account};
use self::proxy::{Fault, Proxy};
use crate::support::{Kafka, PATIENCE, Running, user};

/// How many publishers send at once.
const SENDERS: usize = 4;

/// What a run is like.
struct Plan {
    /// How often something strikes.
    rounds: u64,
    /// How many lines are sent in all.
    lines: u64,
    /// What chance begins with.
    seed: u64,
    /// How long the last acknowledgements may take.
    patience: Duration,
}

/// One of the rounds of a run.
struct Strike<'a> {
    /// Which, from 0 on.
    round: u64,
    /// The topic that is written to.
    topic: &'a str,
    load: &'a Load,
    reader: &'a Running,
    lines: u64,
}

impl Strike<'_> {
    /// Lets the lines of this round come.
    fn allow(&self) {
        self.load.allow(self.lines);
    }

    /// Lets the lines of this round come, and waits until some of them, or of those that still
    /// waited, get through: else one strike after the other would hit what has not recovered yet.
    fn allow_and_see(&self) {
        let seen = self.reader.stdout.bytes().len();
        self.allow();
        let goes_on = self
            .reader
            .stdout
            .wait(PATIENCE * 2, |read| read.len() > seen);
        assert!(goes_on, "nothing comes through in round {}", self.round);
    }
}

/// Has lines sent and read by way of `on`, lets `strike` do its worst once a round while they are under
/// way, and checks what was written to the log and what the reader made of it.
fn run(on: &Kafka, plan: &Plan, mut strike: impl FnMut(Strike<'_>)) -> Report {
    let topic = user("log");
    let each = plan.lines / SENDERS as u64;
    let reader = on
        .program("subscriber", &[&topic, "--from", "earliest", "-s"])
        .start();
    let load = Load::start(on, &topic, SENDERS, each, plan.seed);
    for round in 0..plan.rounds {
        strike(Strike {
            round,
            topic: &topic,
            load: &load,
            reader: &reader,
            lines: each * (round + 1) / plan.rounds,
        });
    }
    let sent = load.end(plan.patience);
    let log = on
        .program("subscriber", &[&topic, "--from", "earliest", "-e", "-s"])
        .start()
        .wait_within(plan.patience)
        .code(0)
        .stdout;
    let report = check(&sent, &log);
    let is_read = reader.stdout.wait(PATIENCE, |read| read.len() >= log.len());
    assert!(
        is_read && reader.stdout.bytes() == log,
        "the reader that saw it all happen read something else: {}\nin the log: {report}",
        check(&sent, &reader.stdout.bytes())
    );
    report
}

/// A seed that is told when a test fails; the one in the environment, to see the same again.
fn seed() -> u64 {
    let given = std::env::var("KAFKA_CHAT_TEST_SEED").ok();
    given.map_or_else(
        || std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64,
        |seed| seed.parse().unwrap(),
    )
}

#[track_caller]
fn assert_clean(report: Report, seed: u64) {
    assert!(report.is_clean(), "{report}; KAFKA_CHAT_TEST_SEED={seed}");
}

/// Programs that run the embedded broker by turns: when the first ends, the next takes over.
///
/// Publishers and readers come to them by `-b`, so that it is known whom to kill.
struct Hosts {
    on: Kafka,
    port: u16,
    hosts: VecDeque<Running>,
}

impl Hosts {
    fn new() -> Hosts {
        let on = Kafka::embedded();
        let Kafka::Embedded { port, .. } = on else {
            unreachable!()
        };
        on.program("publisher", &["nobody", "ready"])
            .input("x\n")
            .run()
            .code(0);
        let mut hosts = Hosts {
            on,
            port,
            hosts: VecDeque::new(),
        };
        hosts.add();
        hosts.add();
        hosts
    }

    /// One more that is ready to take over.
    fn add(&mut self) {
        let host = self
            .on
            .program("subscriber", &["ready", "--from", "earliest"])
            .start();
        host.wait_for("x\n");
        self.hosts.push_back(host);
    }

    /// The way of a client that never hosts.
    fn clients(&self) -> Kafka {
        Kafka::Real(format!("127.0.0.1:{}", self.port))
    }

    /// Kills the one that serves, and says how long it took until another did.
    fn kill(&mut self) -> Duration {
        let host = self.hosts.pop_front().unwrap();
        host.signal("KILL");
        let start = Instant::now();
        host.wait();
        while !serves(self.port) {
            assert!(start.elapsed() < PATIENCE, "nobody takes over");
            thread::sleep(Duration::from_millis(2));
        }
        let took = start.elapsed();
        self.add();
        took
    }

    /// Stops the one that serves for a while.
    fn pause(&self, pause: Duration) {
        self.hosts[0].signal("STOP");
        thread::sleep(pause);
        self.hosts[0].signal("CONT");
    }
}

/// Whether a small broker answers at this port of 127.0.0.1.
fn serves(port: u16) -> bool {
    let broker = client::ask(&[format!("127.0.0.1:{port}")], PATIENCE);
    broker.is_ok_and(|broker| broker.is_small_broker())
}

#[test]
fn nothing_goes_wrong_when_hosts_are_killed_under_load() {
    let mut hosts = Hosts::new();
    let plan = Plan {
        rounds: 4,
        lines: 4000,
        seed: seed(),
        patience: PATIENCE,
    };
    let mut chance = Chance::new(plan.seed);
    let report = run(&hosts.clients(), &plan, |strike| {
        strike.allow_and_see();
        thread::sleep(chance.pause(30));
        hosts.kill();
    });
    assert_clean(report, plan.seed);
}

#[test]
fn nothing_goes_wrong_when_the_host_stands_still_for_a_while() {
    let hosts = Hosts::new();
    let plan = Plan {
        rounds: 1,
        lines: 4000,
        seed: seed(),
        patience: PATIENCE,
    };
    let mut chance = Chance::new(plan.seed);
    let report = run(&hosts.clients(), &plan, |strike| {
        strike.allow_and_see();
        thread::sleep(chance.pause(30));
        hosts.pause(Duration::from_secs(2));
    });
    assert_clean(report, plan.seed);
}

#[test]
fn nothing_goes_wrong_when_answers_are_lost_or_cut() {
    let hosts = Hosts::new();
    let proxy = Proxy::of(hosts.port);
    let faults = [
        Fault::SwallowAcknowledgement,
        Fault::ResetInAnswer(PRODUCE),
        Fault::ResetInAnswer(FETCH),
    ];
    let plan = Plan {
        rounds: 6,
        lines: 4000,
        seed: seed(),
        patience: PATIENCE,
    };
    let report = run(&Kafka::Real(proxy.server()), &plan, |strike| {
        proxy.arm(faults[strike.round as usize % faults.len()]);
        strike.allow();
        proxy.wait();
    });
    assert_clean(report, plan.seed);
}

#[test]
fn nothing_goes_wrong_when_everyone_hosts_in_turn_and_leaves() {
    let on = Kafka::embedded();
    let topic = user("log");
    // Whoever comes first hosts, and takes the broker along when it ends: long before the others.
    let senders: Vec<_> = (0..12)
        .map(|n| {
            let sender = user(&format!("s{n}"));
            let lines: String = (1..=200).map(|n| format!("{sender} {n}\n")).collect();
            let publisher = on
                .program("publisher", &[&sender, &topic])
                .input(lines)
                .start();
            thread::sleep(Duration::from_millis(20));
            (sender, publisher)
        })
        .collect();
    let sent: Vec<_> = senders
        .into_iter()
        .map(|(sender, publisher)| account(sender, 200, &publisher.wait().code(0)))
        .collect();
    let log = on
        .program("subscriber", &[&topic, "--from", "earliest", "-e", "-s"])
        .run()
        .code(0)
        .stdout;
    let report = check(&sent, &log);
    assert!(report.is_clean(), "{report}");
}

#[test]
fn a_lost_acknowledgement_is_cleared_up_while_others_go_on_writing() {
    let hosts = Hosts::new();
    let proxy = Proxy::of(hosts.port);
    let topic = user("log");
    let mut busy = hosts
        .clients()
        .program("publisher", &[&user("busy"), &topic])
        .start();
    let is_over = Arc::new(AtomicBool::new(false));
    let until = is_over.clone();
    let busy = thread::spawn(move || {
        while !until.load(Ordering::Relaxed) && busy.give(b"x\n") {
            thread::sleep(Duration::from_millis(2));
        }
    });
    proxy.arm(Fault::SwallowAcknowledgement);
    let sender = user("sender");
    let ended = Kafka::Real(proxy.server())
        .program("publisher", &[&sender, &topic])
        .input(format!("{sender} 1\n"))
        .run();
    is_over.store(true, Ordering::Relaxed);
    busy.join().unwrap();
    proxy.wait();
    let log = hosts
        .clients()
        .program("subscriber", &[&topic, "--from", "earliest", "-e", "-s"])
        .run()
        .code(0)
        .stdout;
    let log: Vec<u8> = log
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(sender.as_bytes()))
        .flatten()
        .copied()
        .collect();
    let report = check(&[account(sender, 1, &ended.code(0))], &log);
    assert!(report.is_clean(), "{report}");
}
