//! Many rounds, on the embedded broker and on real Kafkas: `scripts/test-faults` runs them.
//!
//! `KAFKA_CHAT_TEST_ROUNDS` and `KAFKA_CHAT_TEST_LINES` make them fewer, `KAFKA_CHAT_TEST_SEED` the same again.

use std::fmt::Arguments;
use std::io::{Write, stdout};
use std::thread;
use std::time::{Duration, Instant};

use kafka_chat::wire::{FETCH, PRODUCE};

use super::away::chat;
use super::check::{Report, check};
use super::load::{Chance, account};
use super::proxy::{Fault, Proxy};
use super::{Hosts, Plan, run, seed};
use crate::support::{Ended, Kafka, PATIENCE, Program, free_port, setting, user};
use crate::tty::{CTRL_C, CTRL_D};

/// What is done in a proxy, in turn.
const FAULTS: [Fault; 5] = [
    Fault::SwallowAcknowledgement,
    Fault::ResetInAnswer(PRODUCE),
    Fault::ResetInAnswer(FETCH),
    Fault::HalfOpenAcknowledgement,
    Fault::HalfOpen,
];

/// How long a broker stands still.
const STANDSTILL: Duration = Duration::from_secs(20);

/// A plan of so many rounds, or as many as the environment allows.
fn plan(rounds: u64) -> Plan {
    let number = |name| Some(std::env::var(name).ok()?.parse().unwrap());
    Plan {
        rounds: number("KAFKA_CHAT_TEST_ROUNDS").map_or(rounds, |most: u64| rounds.min(most)),
        lines: number("KAFKA_CHAT_TEST_LINES").unwrap_or(100_000),
        seed: seed(),
        // A publisher gives up by itself after two minutes.
        patience: Duration::from_secs(300),
    }
}

/// Tells figures, which are what these tests are run for.
pub(super) fn tell(figures: Arguments<'_>) {
    let line = format!("\n{figures}\n");
    stdout().write_all(line.as_bytes()).unwrap();
}

#[track_caller]
fn conclude(what: &str, plan: &Plan, report: Report) {
    let Plan { rounds, seed, .. } = plan;
    tell(format_args!(
        "{what}, {rounds} rounds, seed {seed}: {report}"
    ));
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.undelivered, 0, "nothing is away for two minutes");
}

/// Has the proxy do everything that it can, in turn.
fn through_a_proxy(what: &str, port: u16) {
    let proxy = Proxy::of(port);
    let plan = plan(15);
    let mut chance = Chance::new(plan.seed);
    let report = run(&Kafka::Real(proxy.server()), &plan, |strike| {
        proxy.arm(FAULTS[strike.round as usize % FAULTS.len()]);
        strike.allow();
        // Connections that are half open are noticed when a request has had its time.
        proxy.wait_within(Duration::from_secs(120));
        thread::sleep(chance.pause(200));
    });
    conclude(what, &plan, report);
}

#[test]
#[ignore = "takes long"]
fn embedded_hosts_are_killed() {
    let mut hosts = Hosts::new();
    let plan = plan(50);
    let mut chance = Chance::new(plan.seed);
    let mut took = Vec::new();
    let report = run(&hosts.clients(), &plan, |strike| {
        strike.allow_and_see();
        thread::sleep(chance.pause(40));
        took.push(hosts.kill());
    });
    took.sort();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    tell(format_args!(
        "takeover: median {median:.0?}, longest {longest:.0?}"
    ));
    conclude("embedded, hosts killed", &plan, report);
    assert!(median < Duration::from_secs(2), "{took:?}");
}

#[test]
#[ignore = "takes long"]
fn embedded_host_stands_still() {
    let hosts = Hosts::new();
    let plan = plan(2);
    let mut chance = Chance::new(plan.seed);
    let report = run(&hosts.clients(), &plan, |strike| {
        strike.allow_and_see();
        thread::sleep(chance.pause(60));
        hosts.pause(STANDSTILL);
    });
    conclude("embedded, host stands still", &plan, report);
}

#[test]
#[ignore = "takes long"]
fn embedded_through_a_proxy() {
    let hosts = Hosts::new();
    through_a_proxy("embedded, connections broken", hosts.port);
}

/// Runs the embedded broker on a disk of its own, which it fills and empties when it is told to.
const DISK: &str = r#"
    mount -t tmpfs -o size=48m tmpfs "$1"
    "$SUBSCRIBER" host "--embedded=$2" --data-dir "$1/log" &
    n=0
    while read -r word; do
        case $word in
        fill) head -c 48m /dev/zero > "$1/ballast" || true ;;
        free) rm "$1/ballast" ;;
        esac
        echo "$word $((++n))"
    done
    kill "$!"
"#;

#[test]
#[ignore = "takes long; needs to mount a small disk (unshare)"]
fn embedded_disk_is_full() {
    let (disk, port) = (tempfile::tempdir().unwrap(), free_port());
    let mut broker = Program::other("unshare", &["-rm", "bash", "-euc", DISK, "bash"])
        .arg(disk.path())
        .arg(port.to_string())
        .env("SUBSCRIBER", env!("CARGO_BIN_EXE_subscriber"))
        .start();
    broker.wait_for_notice("a small broker of its own");
    let on = Kafka::Real(format!("127.0.0.1:{port}"));
    let plan = plan(20);
    let mut chance = Chance::new(plan.seed);
    let report = run(&on, &plan, |strike| {
        strike.allow_and_see();
        thread::sleep(chance.pause(30));
        broker.write("fill\n");
        broker.wait_for(&format!("fill {}\n", 2 * strike.round + 1));
        // It is refused, and not for being asked too little.
        on.program("publisher", &["eve", "probe", "--delivery-timeout", "1"])
            .input([b'x'; 10_000])
            .run()
            .code(1)
            .says(&["an error of its own"]);
        broker.write("free\n");
        broker.wait_for(&format!("free {}\n", 2 * strike.round + 2));
    });
    broker.close();
    broker.wait();
    conclude("embedded, disk full", &plan, report);
}

/// What the tests above would not see, if the checker or the faults were no good.
#[cfg(feature = "test-no-read-back")]
#[test]
#[ignore = "needs a build that does not read back"]
fn without_reading_back_lines_are_doubled() {
    let hosts = Hosts::new();
    let proxy = Proxy::of(hosts.port);
    let plan = Plan {
        rounds: 8,
        lines: 8000,
        ..plan(8)
    };
    let report = run(&Kafka::Real(proxy.server()), &plan, |strike| {
        proxy.arm(Fault::SwallowAcknowledgement);
        strike.allow();
        proxy.wait();
    });
    tell(format_args!(
        "without reading back, seed {}: {report}",
        plan.seed
    ));
    assert!(report.doubled > 0, "{report}");
    assert_eq!(report.lost, 0, "{report}");
}

/// Asks `tests/cluster` to do something with the cluster of this run.
fn cluster(arguments: &[&str]) -> Ended {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster");
    let mut all = arguments.to_vec();
    let dir = setting("KAFKA_CHAT_TEST_DIR");
    all.extend(["--dir", &dir]);
    Program::other(script, &all)
        .start()
        .wait_within(Duration::from_secs(180))
        .code(0)
}

/// The port of the only broker.
fn broker_port() -> u16 {
    let servers = setting("KAFKA_CHAT_TEST_SERVERS");
    let port = servers.strip_prefix("127.0.0.1:").unwrap();
    port.parse().unwrap()
}

/// A node of the cluster that is dead. Dropped, it is started again: also when a test has failed, since the
/// next one needs it.
struct Killed(String);

impl Killed {
    fn node(node: &str) -> Killed {
        cluster(&["signal", "KILL", node]);
        Killed(node.into())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        cluster(&["start-node", &self.0]);
    }
}

fn named(what: &str) -> String {
    format!("Kafka {}, {what}", setting("KAFKA_CHAT_TEST_VERSION"))
}

#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_is_killed() {
    let plan = plan(20);
    let mut chance = Chance::new(plan.seed);
    let report = run(&Kafka::real(), &plan, |strike| {
        strike.allow_and_see();
        thread::sleep(chance.pause(150));
        drop(Killed::node("1"));
    });
    conclude(&named("broker killed"), &plan, report);
}

#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_stands_still() {
    let plan = plan(2);
    let mut chance = Chance::new(plan.seed);
    let report = run(&Kafka::real(), &plan, |strike| {
        strike.allow_and_see();
        thread::sleep(chance.pause(150));
        cluster(&["signal", "STOP", "1"]);
        thread::sleep(STANDSTILL);
        cluster(&["signal", "CONT", "1"]);
    });
    conclude(&named("broker stands still"), &plan, report);
}

#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_through_a_proxy() {
    through_a_proxy(&named("connections broken"), broker_port());
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_refuses_the_first_batch() {
    let on = Kafka::real();
    for _ in 0..5 {
        let proxy = Proxy::of(broker_port());
        let (me, topic) = (user("alice"), user("bob"));
        // As long as a line needs to be so that its last bytes are its own.
        let lines: String = (1..=8).map(|n| format!("{me} {n}\n")).collect();
        proxy.arm(Fault::Damage);
        let ended = Kafka::Real(proxy.server())
            // Each line is a batch, as when somebody types.
            .program("publisher", &[&me, &topic, "-X", "batch.num.messages=1"])
            .input(lines)
            .start()
            .wait_within(Duration::from_secs(60));
        proxy.wait();
        let log = on
            .program("subscriber", &[&topic, "--from", "earliest", "-e", "-s"])
            .run()
            .code(0)
            .stdout;
        let report = check(&[account(me, 8, &ended.code(0))], &log);
        assert!(report.is_clean(), "{report}");
    }
    tell(format_args!(
        "{}: 5 times, nothing lost",
        named("the first batch refused")
    ));
}

#[test]
#[ignore = "needs a real Kafka"]
fn one_broker_is_away_from_chats() {
    let on = Kafka::real();
    let (me, peer) = (user("alice"), user("bob"));
    let alice = chat(&on, &me, &peer, &[]);
    alice.line("zero");
    on.program("subscriber", &[&peer, "--from", "earliest", "-n", "1"])
        .run()
        .code(0);
    let broker = Killed::node("1");
    alice.wait_for(" lost (");
    alice.line("one");
    alice.line("two");
    drop(broker);
    alice.wait_for(" is back");
    let bob = chat(&on, &peer, &me, &[]);
    bob.wait_for(&format!("{me}: two"));
    bob.line("three");
    alice.wait_for(&format!("{peer}: three"));
    let broker = Killed::node("1");
    bob.wait_for(" lost (");
    bob.line("never");
    bob.wait_for("never");
    let start = Instant::now();
    bob.keys(CTRL_C);
    let history = bob.ends_with(1).history();
    let took = start.elapsed();
    drop(broker);
    assert!(took < Duration::from_millis(1500), "{took:?}\n{history}");
    assert!(
        history.contains("1 of 2 lines was not delivered"),
        "{history}"
    );
    alice.wait("a second return on the screen", |screen| {
        screen.contents().matches(" is back").count() == 2
    });
    alice.keys(CTRL_D);
    let history = alice.ends_with(0).history();
    for notice in [" lost (", " is back"] {
        assert_eq!(history.matches(notice).count(), 2, "{notice}\n{history}");
    }
    let log = on
        .program("subscriber", &[&peer, "--from", "earliest", "-e"])
        .run()
        .code(0);
    log.prints("zero\none\ntwo\n");
}

#[test]
#[ignore = "needs a real Kafka of three brokers"]
fn three_brokers_lose_their_leader() {
    let plan = plan(10);
    let mut chance = Chance::new(plan.seed);
    let report = run(&Kafka::real(), &plan, |strike| {
        let leader = leader_in_full_sync(strike.topic);
        strike.allow_and_see();
        thread::sleep(chance.pause(150));
        let broker = Killed::node(&leader);
        // Long enough for the others to go on without it.
        thread::sleep(chance.pause(3000));
        drop(broker);
    });
    conclude(&named("leader killed"), &plan, report);
}

#[test]
#[ignore = "needs a real Kafka of three brokers"]
fn three_brokers_of_which_too_few_are_left_take_no_line_for_delivered() {
    let on = Kafka::real();
    let (me, topic) = (user("alice"), user("bob"));
    let mut publisher = on
        .program("publisher", &[&me, &topic, "--delivery-timeout", "10"])
        .start();
    publisher.write(format!("{me} 1\n"));
    on.program("subscriber", &[&topic, "--from", "earliest", "-n", "1"])
        .run()
        .code(0);
    let leader = leader_in_full_sync(&topic);
    let others = ["1", "2", "3"].into_iter().filter(|node| *node != leader);
    let others: Vec<_> = others.map(Killed::node).collect();
    publisher.write(format!("{me} 2\n{me} 3\n"));
    publisher.close();
    let ended = publisher.wait_within(Duration::from_secs(40)).code(1);
    drop(others);
    leader_in_full_sync(&topic);
    let log = on
        .program("subscriber", &[&topic, "--from", "earliest", "-e", "-s"])
        .run()
        .code(0)
        .stdout;
    let sent = account(me, 3, &ended);
    assert!(sent.undelivered.contains(&2) && sent.undelivered.contains(&3));
    let report = check(&[sent], &log);
    tell(format_args!("{}: {report}", named("too few are left")));
    assert!(report.is_clean(), "{report}");
}

/// The leader of the topic's one partition, once all three replicas are in sync.
fn leader_in_full_sync(topic: &str) -> String {
    let servers = setting("KAFKA_CHAT_TEST_SERVERS");
    let end = Instant::now() + Duration::from_secs(60).max(PATIENCE);
    loop {
        // `    partition 0, leader 2, replicas: 2,3,1, isrs: 2,3,1`
        let seen = Program::other("kcat", &["-L", "-b", &servers, "-t", topic]).run();
        let seen = String::from_utf8(seen.stdout).unwrap();
        let found = seen.lines().find_map(|line| {
            let (_, rest) = line.split_once("partition 0, leader ")?;
            let (leader, rest) = rest.split_once(',')?;
            let (_, in_sync) = rest.split_once("isrs: ")?;
            (leader != "-1" && in_sync.trim().split(',').count() == 3).then(|| leader.to_string())
        });
        match found {
            Some(leader) => return leader,
            None => assert!(Instant::now() < end, "the replicas are not in sync\n{seen}"),
        }
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
#[ignore = "needs a Kafka with ZooKeeper"]
fn zookeeper_is_killed() {
    let plan = plan(5);
    let mut chance = Chance::new(plan.seed);
    let report = run(&Kafka::real(), &plan, |strike| {
        strike.allow_and_see();
        thread::sleep(chance.pause(150));
        drop(Killed::node("zookeeper"));
    });
    conclude(&named("ZooKeeper killed"), &plan, report);
}
