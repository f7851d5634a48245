//! How much the programs ask their broker while nothing happens, counted on the wire.

use std::thread;
use std::time::{Duration, Instant};

use kafka_chat::wire::FETCH;

use crate::faults::proxy::Proxy;
use crate::support::{Kafka, user};
use crate::tty::CTRL_D;

/// How long requests are counted.
const COUNTED: Duration = Duration::from_secs(60);

/// How many seconds are between two fetches, and, on a real Kafka, between two requests for metadata.
const INTERVAL: u64 = 8;

/// How many requests more than that there may be: several were about to be due at the start.
const MORE: u64 = 8;

/// A proxy for one program, which counts its requests to the one broker of `on`.
pub(crate) fn counting(on: &Kafka) -> (Proxy, Kafka) {
    let servers = on.servers();
    let (_, port) = servers.rsplit_once(':').unwrap();
    let proxy = Proxy::of(port.parse().unwrap());
    let on = Kafka::Real(proxy.server());
    (proxy, on)
}

/// Waits until a program fetches patiently: for the second time, and with librdkafka by the second of its clients. What
/// was before a chat is read from the small broker once, on other connections.
fn wait_until_patient(proxy: &Proxy, on: &Kafka) {
    proxy.wait_for_requests(|requests| {
        let fetches = requests.iter().filter(|((_, api), _)| *api == FETCH);
        let mut fetches = fetches.map(|(_, count)| *count);
        match on {
            Kafka::Embedded { .. } => fetches.any(|count| count >= 2),
            Kafka::Real(_) => fetches.skip(1).last().is_some_and(|count| count >= 2),
        }
    });
}

/// The programs of three users, each with a topic. Afterwards `write` sends lines to the last of them, and returns how
/// many.
pub(crate) fn programs_in_which_nothing_happens_ask_rarely(
    on: &Kafka,
    [me, peer, reads]: [String; 3],
    write: impl FnOnce(&str) -> usize,
) {
    let _host = on.keep_running();
    let (lonely, absent) = (user("dave"), user("erin"));
    let (of_alice, by_alice) = counting(on);
    let (of_bob, by_bob) = counting(on);
    let (of_dave, by_dave) = counting(on);
    let (of_reader, by_reader) = counting(on);
    let (of_writer, by_writer) = counting(on);
    let reader = by_reader.reader(&reads);
    let alice = by_alice.chat(&me, &peer);
    let bob = by_bob.chat(&peer, &me);
    // A line that nobody reads.
    let dave = by_dave.chat(&lonely, &absent);
    dave.line("is anybody there?");
    let mut writer = by_writer.program("publisher", &["frank", &absent]).start();
    writer.write("hello\n");
    on.first_lines(&absent, 2);
    alice.wait_for("is here");
    bob.wait_for("is here");

    let proxies = [
        ("subscriber", of_reader),
        ("chat", of_alice),
        ("chat", of_bob),
        ("chat", of_dave),
        ("publisher", of_writer),
    ];
    for (program, proxy) in &proxies {
        if *program != "publisher" {
            wait_until_patient(proxy, on);
        }
    }
    let before = proxies.each_ref().map(|(_, proxy)| proxy.requests());
    let start = Instant::now();
    thread::sleep(COUNTED);
    for ((program, proxy), before) in proxies.iter().zip(&before) {
        let (after, seconds) = (proxy.requests(), start.elapsed().as_secs());
        let count = after.values().sum::<u64>() - before.values().sum::<u64>();
        println!("{program}: {count} requests in {seconds} s");
        let most = match *program {
            "chat" => seconds + MORE,
            "publisher" => MORE,
            _ => 2 * seconds / INTERVAL + MORE,
        };
        let what = "by connection and API key";
        assert!(
            count <= most,
            "{program}: {count} in {seconds} s; {what}: {before:?} {after:?}"
        );
    }
    // They have not ended meanwhile, and show what comes.
    let written = write(&reads);
    reader.wait_for_bytes(written * "hello\n".len());
    on.send(&me, &peer, "hello\n");
    bob.wait_for("hello");
    dave.keys(CTRL_D);
    dave.ends_with(0).has_shown(&["1 line not read by"]);
    writer.close();
    writer.wait().code(0);
    drop((reader, alice));
}

#[test]
fn programs_on_the_small_broker_in_which_nothing_happens_ask_rarely() {
    let on = Kafka::embedded();
    let write = |peer: &str| {
        on.send("alice", peer, "hello\n");
        1
    };
    let names = ["alice", "bob", "carol"].map(user);
    programs_in_which_nothing_happens_ask_rarely(&on, names, write);
}
