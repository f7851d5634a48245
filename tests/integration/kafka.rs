//! Tests on a real Kafka: those that other modules run on the small broker, and more.

mod clusters;
mod matrix;
#[cfg(feature = "librdkafka")]
mod records;
mod topics;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use crate::support::{Ended, Kafka, PATIENCE, Program, setting, user};
use crate::{bad_input, chatting, one_way, others, presence, sealed};
#[cfg(feature = "librdkafka")]
use crate::{earlier, idle, reading};

macro_rules! on_kafka {
    ($($module:ident::$name:ident($($argument:expr),*);)*) => {
        $(
            #[test]
            #[ignore = "needs a real Kafka"]
            fn $name() {
                $module::$name(&Kafka::real() $(, $argument)*);
            }
        )*
    };
}

on_kafka! {
    one_way::a_pipe_comes_out_as_it_went_in(100_000);
    one_way::any_bytes_but_a_line_ending_make_a_line();
    one_way::the_last_line_needs_no_ending();
    one_way::random_bytes_come_out_byte_for_byte(1_000_000);
    one_way::each_line_is_sent_before_the_next_one_is_written();
    one_way::names_left_out_are_asked_for();
    one_way::a_subscriber_shows_only_lines_sent_after_its_start();
    one_way::a_line_that_is_too_long_is_named_and_the_others_are_sent();
    one_way::a_line_that_is_too_long_with_its_key_is_named_and_the_others_are_sent();
    bad_input::another_server_is_used_where_the_first_is_no_broker();
    others::the_tutorials_publisher_reaches_our_subscriber();
    others::our_publisher_reaches_the_tutorials_subscriber();
    others::our_chat_talks_with_the_tutorials_one_way_scripts();
    others::our_chat_talks_with_the_tutorials_chat_under_its_option();
    others::kcat_reads_our_lines_and_we_read_its();
    sealed::sealed_lines_come_out_as_they_went_in_and_nobody_else_can_read_them();
    sealed::a_reader_with_another_secret_says_so_and_shows_nothing();
    sealed::a_reader_without_a_secret_says_once_that_lines_are_sealed_and_prints_them();
    sealed::a_writer_without_the_secret_has_no_line_shown_and_each_try_is_counted();
    sealed::lines_that_are_dropped_or_reordered_are_said();
    sealed::a_line_that_is_too_large_to_be_sealed_is_named_and_the_others_are_sent();
    sealed::a_sealed_chat_says_so_and_its_lines_come_back_when_it_is_opened_again();
    sealed::a_chat_without_the_secret_sends_nothing_to_a_peer_who_seals();
    sealed::two_with_different_secrets_are_both_told();
    sealed::bad_lines_leave_a_chat_as_it_is_and_the_line_that_is_typed_intact();
    chatting::lines_go_both_ways_at_once();
    chatting::ctrl_d_typed_between_two_lines_ends_a_chat_after_the_lines_before_it();
    chatting::unread_lines_are_shown_once_and_counted_for_their_sender();
    chatting::a_third_user_causes_one_notice_and_has_a_chat_of_their_own();
    presence::each_is_told_once_that_the_other_is_here_comes_and_leaves();
    presence::a_peer_who_was_killed_is_gone();
    presence::a_peer_who_was_stopped_is_gone_and_here_again();
    presence::the_peers_first_line_and_the_heartbeats_say_only_once_who_is_here();
    presence::a_line_that_was_not_written_in_a_chat_says_nothing_of_who_is_here();
    presence::a_line_on_the_peers_screen_is_read();
    presence::a_line_after_the_peers_end_is_not_read_however_that_came();
    presence::of_two_chats_of_the_same_pair_the_one_that_stays_is_here();
}

#[cfg(feature = "librdkafka")]
on_kafka! {
    reading::json_has_all_about_each_record();
    reading::a_name_on_a_pipe_makes_no_line_of_its_own();
    earlier::so_many_earlier_lines_are_shown_as_are_asked_for();
    earlier::a_user_who_is_asked_for_the_peer_sees_first_who_has_written();
    earlier::a_pipe_gets_earlier_lines_only_if_it_asks_for_them();
}

/// With several brokers, a program asks them beside the one whose requests are counted.
#[cfg(feature = "librdkafka")]
mod one_broker {
    use rdkafka::producer::BaseRecord;

    use super::*;

    const PARTITIONS: i32 = 6;

    #[test]
    #[ignore = "needs a real Kafka"]
    fn programs_in_which_nothing_happens_ask_rarely_and_show_a_line_in_any_partition() {
        let on = Kafka::real();
        let names = [(); 3].map(|()| reading::topic(&on, PARTITIONS));
        let write = |peer: &str| {
            let lines = (0..PARTITIONS).map(|partition| {
                let record = BaseRecord::to(peer).partition(partition);
                record.key(&b"dave"[..]).payload(&b"hello"[..])
            });
            reading::write(&on, lines);
            PARTITIONS as usize
        };
        idle::programs_in_which_nothing_happens_ask_rarely(&on, names, write);
    }
}

/// Runs `tests/cluster` on the cluster that `scripts/test-kafka` has started.
pub(crate) fn cluster(arguments: &[&str]) {
    run(script(arguments, setting("KAFKA_CHAT_TEST_DIR")));
}

/// Creates a topic, whose name begins with `name`.
pub(crate) fn new_topic(name: &str) -> String {
    let topic = user(name);
    cluster(&["topic", &topic]);
    topic
}

/// The lines of a topic that several programs wrote, sorted.
#[cfg(feature = "librdkafka")]
fn sorted_log(on: &Kafka, topic: &str) -> Vec<String> {
    let mut log: Vec<String> = on.log(topic).lines().map(String::from).collect();
    log.sort();
    log
}

/// `tests/cluster` for the cluster in a folder.
fn script(arguments: &[&str], dir: impl AsRef<OsStr>) -> Program {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster");
    Program::other(script, arguments).arg("--dir").arg(dir)
}

/// Runs the script to its end, for which it has a deadline of its own.
fn run(script: Program) -> Ended {
    script.start().wait_within(PATIENCE * 3).code(0)
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn a_chat_opens_with_the_last_lines_of_both_sides_in_all_partitions() {
    for partitions in [1, 6] {
        earlier::a_chat_opens_with_the_last_lines_of_both_sides(&Kafka::real(), partitions);
    }
}

#[cfg(feature = "librdkafka")]
on_kafka! {
    sealed::json_says_that_a_line_is_sealed_and_when_its_sender_sealed_it();
    sealed::copies_of_lines_do_not_take_the_place_of_earlier_lines();
    sealed::a_flood_of_bad_lines_leaves_the_line_that_is_typed_intact();
    sealed::sealed_lines_are_in_the_partition_that_the_senders_name_has();
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn what_was_there_before_the_start_is_not_shown_when_it_is_repeated() {
    for partitions in [1, 6] {
        sealed::what_was_there_before_the_start_is_not_shown_when_it_is_repeated(
            &Kafka::real(),
            partitions,
        );
    }
}

#[cfg(all(target_os = "linux", feature = "librdkafka"))]
on_kafka! {
    sealed::a_flood_of_bad_lines_under_many_names_takes_no_memory(100_000);
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn a_login_at_a_port_that_takes_none_is_told_from_a_wrong_one() {
    let login = [
        "security.protocol=sasl_plaintext",
        "sasl.mechanism=PLAIN",
        "sasl.username=alice",
        "sasl.password=hush",
    ];
    let properties = login.iter().flat_map(|property| ["-X", property]);
    let subscriber = Kafka::real().program("subscriber", &[&user("bob")]);
    let ended = subscriber.args(properties).run().code(1);
    ended.says(&["takes no login"]).does_not_say("hush");
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn weaker_acknowledgements_are_a_warning() {
    let publisher = Kafka::real().program("publisher", &["alice", &user("bob")]);
    let weak = ["-X", "enable.idempotence=false", "-X", "acks=1"];
    let ended = publisher.args(weak).input("one\n").run().code(0);
    ended.says(&[
        "Warning",
        "acks",
        "enable.idempotence",
        "Exit code 0 then means only that the lines were handed over.",
    ]);
}

#[test]
#[ignore = "needs a real Kafka"]
fn the_port_of_a_kraft_controller_is_named_as_one() {
    let info = Path::new(&setting("KAFKA_CHAT_TEST_DIR")).join("info");
    let info = fs::read_to_string(info).unwrap();
    let mut listeners = info.lines();
    let Some(controllers) = listeners.find_map(|line| line.strip_prefix("CONTROLLER=")) else {
        // A cluster with ZooKeeper has none.
        return assert!(info.contains("zookeeper="), "{info}");
    };
    let controller = controllers.split(',').next().unwrap().to_string();
    let subscriber = Kafka::Real(controller).program("subscriber", &["bob"]);
    subscriber
        .run()
        .code(1)
        .says(&["the port of a KRaft controller"]);
}

#[cfg(feature = "librdkafka")]
#[test]
#[ignore = "needs a real Kafka"]
fn debug_lines_are_kept_off_a_terminal_and_go_into_a_file() {
    let on = Kafka::real();
    let (me, peer) = (user("alice"), user("bob"));
    let options = ["-X", "debug=all"];
    let chat = on.chat_with(&me, &peer, &options);
    chat.line("typed");
    assert_eq!(on.first_lines(&peer, 1), "typed\n");
    chat.has_shown(&["debug lines are not shown"]);
    chat.has_not_shown("thrd:");
    let publisher = on.program("publisher", &[&me, &peer]);
    let ended = publisher.args(options).input("piped\n").run().code(0);
    ended.says(&["thrd:"]);
}

/// Forwards connections to the IPv6 loopback, at the port that is returned, to the first of `servers`.
fn ipv6_loopback_of(servers: &str) -> u16 {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = servers.split(',').next().unwrap().to_string();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let broker = TcpStream::connect(&server).unwrap();
            let ways = [(&client, &broker), (&broker, &client)];
            for (from, to) in ways.map(|(a, b)| (a.try_clone(), b.try_clone())) {
                let (mut from, mut to) = (from.unwrap(), to.unwrap());
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    port
}

#[test]
#[ignore = "needs a real Kafka"]
fn a_broker_on_the_ipv6_loopback_alone_is_reached_as_localhost() {
    let on = Kafka::real();
    let port = ipv6_loopback_of(&on.servers());
    let on = Kafka::Real(format!("localhost:{port}"));
    let peer = user("bob");
    on.send("alice", &peer, "one\n");
    assert_eq!(on.log(&peer), "one\n");
}

#[test]
#[ignore = "needs a real Kafka"]
fn a_topic_with_six_partitions_keeps_each_senders_order_and_is_read_whole() {
    let on = Kafka::real();
    let peer = user("bob");
    cluster(&["topic", &peer, "6"]);
    let senders: Vec<String> = (0..8).map(|n| user(&format!("sender{n}"))).collect();
    for sender in &senders {
        let lines: String = (0..100).map(|n| format!("{n}\n")).collect();
        on.send(sender, &peer, lines);
    }
    let all = String::from_utf8(on.log_bytes(&peer, &["-s"])).unwrap();
    assert_eq!(all.lines().count(), 800);
    for sender in &senders {
        let prefix = format!("{sender}: ");
        let theirs: Vec<u32> = all
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix)?.parse().ok())
            .collect();
        assert_eq!(theirs, (0..100).collect::<Vec<_>>(), "{sender}");
    }
}
