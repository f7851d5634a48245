//! Two hundred hostile connections to the small broker at once, while two other programs talk over it.

use std::fs;
use std::io::{self, Read, Write};
use std::iter;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::RcvBuf};

use crate::support::{
    Kafka, PATIENCE, Program, Running, kilobytes, message, poll_until, random_lines,
    write_without_times,
};

/// How many connections are hostile at a time.
const CONNECTIONS: usize = 200;

/// The most memory that the host may ever take, in kB.
const MOST_MEMORY: u64 = 128 * 1024;

/// A limit of address space that is enough for a host, in kB.
const ADDRESS_SPACE: &str = "-v 200000";

/// How much more memory a host may take at its start than the one before it did, whatever was done to that, in kB:
/// tables of topics and of committed offsets, which the attacks fill, have their bounds.
const MORE_AT_START: u64 = 16 * 1024;

/// A request of 8 MiB, the largest there is, can have so many bytes after its header.
const MOST_BYTES: usize = (8 << 20) - 64;

/// How many lines the topic `big` has, to which the attacks add none.
const BIG: usize = 80_000;

/// Topics of an earlier version. Their messages have no time, so that a search by time reads them all.
const OLD: [&str; 4] = ["old-0", "old-1", "old-2", "old-3"];

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const LIST_OFFSETS: i16 = 2;
const METADATA: i16 = 3;
const OFFSET_COMMIT: i16 = 8;
const OFFSET_FETCH: i16 = 9;

#[test]
fn two_programs_talk_while_two_hundred_connections_abuse_the_broker() {
    abuse(Duration::from_secs(3), Some(ADDRESS_SPACE));
}

#[test]
fn a_host_with_little_memory_has_fewer_connections_and_goes_on() {
    let on = Kafka::embedded();
    let host = limited_host(&on, "-v 100000");
    let guests = on.by_address();
    let reader = guests.reader("bob");
    guests.send("alice", "bob", "before\n");
    reader.wait_for("before\n");
    // Each has a thread, with a stack.
    let connect = |_| TcpStream::connect(on.servers()).unwrap();
    let many: Vec<_> = (0..200).map(connect).collect();
    guests.send("alice", "bob", "meanwhile\n");
    reader.wait_for("meanwhile\n");
    let closed = |mut it: &TcpStream| {
        it.set_nonblocking(true).unwrap();
        matches!(it.read(&mut [0]), Ok(0))
    };
    assert!(
        many.iter().any(closed),
        "no connection was refused or closed"
    );
    drop((reader, host));
}

#[test]
fn long_fetches_do_not_shut_out_newcomers_where_few_files_may_be_open() {
    let on = Kafka::embedded();
    let host = limited_host(&on, "-n 150");
    let guests = on.by_address();
    guests.send("alice", "bob", "before\n");
    let wait = fetch("bob", 1, 1, i32::MAX);
    let fetching: Vec<_> = iter::repeat_with(|| {
        let mut stream = TcpStream::connect(on.servers()).unwrap();
        // It is refused if the others have not begun to wait yet.
        let _ = stream.write_all(&wait);
        stream
    })
    .take(200)
    .collect();
    // For each of those that are too many, another connection is closed, one after the other: on a busy machine that can
    // take longer than a newcomer waits.
    let attempt = || {
        let publisher = guests.program("publisher", &["alice", "bob"]);
        let ended = publisher.input("meanwhile\n").run();
        (ended.exit_code() == Some(0)).then_some(())
    };
    poll_until(PATIENCE, || format!("sent\n{}", host.report()), attempt);
    assert_eq!(guests.log("bob"), "before\nmeanwhile\n");
    drop((fetching, host));
}

/// Starts a program that hosts the small broker, with a limit in the form of `ulimit`'s arguments.
fn limited_host(on: &Kafka, limit: &str) -> Running {
    let command = on.program("subscriber", &["host"]).into_command();
    // The shell starts the program in its place, with the limit.
    let script = format!(r#"ulimit {limit}; exec "$0" "$@""#);
    let host = Program::other("sh", &["-c", &script])
        .arg(command.get_program())
        .args(command.get_args())
        .start();
    host.wait_for_notice("small broker of its own");
    host
}

/// Runs every attack for so long. The host's memory stays in bounds, every line between two other
/// programs is delivered, and all that the attacks took is given back. The host has this limit.
pub(crate) fn abuse(duration: Duration, limit: Option<&str>) {
    let on = Kafka::embedded();
    for topic in OLD {
        write_without_times(&on, topic, &vec![&*"x".repeat(100); 40_000]);
    }
    let host = match limit {
        Some(limit) => limited_host(&on, limit),
        None => on.host(),
    };
    let at_start = kilobytes(host.pid(), "VmHWM");
    on.send("mallory", "big", random_lines(1, BIG, 100));
    on.send(
        "mallory",
        "long",
        format!("{0}\n{0}\n", "x".repeat(500_000)),
    );
    let guests = on.by_address();
    let reader = guests.reader("bob");
    let mut writer = guests.program("publisher", &["alice", "bob"]).start();
    writer.write("first\n");
    reader.wait_for("first\n");
    let descriptors = count_descriptors(host.pid());

    let (server, attacks) = (on.servers(), attacks());
    let is_over = AtomicBool::new(false);
    let mut delays = Vec::new();
    thread::scope(|scope| {
        for n in 0..CONNECTIONS {
            let (server, attacks, is_over) = (&server, &attacks, &is_over);
            scope.spawn(move || {
                let mut round = n;
                while !is_over.load(Ordering::Relaxed) {
                    let attack = &attacks[round % attacks.len()];
                    // The broker may close the connection at any time.
                    let _ = TcpStream::connect(server).and_then(|to| attack(to, n, is_over));
                    round += 1;
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        // Also if this fails, so that the failure is seen.
        let _end = End(&is_over);
        let (start, mut n) = (Instant::now(), 0);
        while start.elapsed() < duration {
            // A long one now and then.
            let more = "x".repeat(if n % 20 == 10 { 20_000 } else { 0 });
            let (line, sent) = (format!("line {n} {more}\n"), Instant::now());
            writer.write(&line);
            reader.wait_for(&line);
            delays.push(sent.elapsed());
            // A newcomer is served, too.
            if n % 50 == 0 {
                poll_until(
                    PATIENCE,
                    || "a newcomer is served".into(),
                    || {
                        let newcomer = TcpStream::connect(&server).ok()?;
                        newcomer.set_read_timeout(Some(PATIENCE)).unwrap();
                        ask_for(&newcomer, "big").ok()
                    },
                );
            }
            n += 1;
            thread::sleep(Duration::from_millis(10));
        }
    });
    delays.sort();
    let (peak, at) = (kilobytes(host.pid(), "VmHWM"), |part: usize| {
        delays[(delays.len() - 1) * part / 100].as_secs_f64() * 1e3
    });
    println!(
        "{} lines: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms; the host's peak memory {peak} kB",
        delays.len(),
        at(50),
        at(99),
        at(100),
    );
    writer.close();
    writer.wait().code(0);
    let text = String::from_utf8(reader.stdout.bytes()).unwrap();
    let found = text.lines().map(|line| line.trim_end_matches('x'));
    let expected = (0..delays.len()).map(|n| format!("line {n} "));
    let expected: Vec<_> = iter::once("first".into()).chain(expected).collect();
    assert!(found.eq(&expected), "the lines are others");
    assert!(peak < MOST_MEMORY, "the host took {peak} kB");
    // Those of the two programs may be gone.
    let what = || {
        format!(
            "{descriptors} descriptors again: {}",
            count_descriptors(host.pid())
        )
    };
    poll_until(PATIENCE, what, || {
        (count_descriptors(host.pid()) <= descriptors).then_some(())
    });

    drop((reader, host));
    let host = on.host();
    let again = kilobytes(host.pid(), "VmHWM");
    println!("memory after the start: {at_start} kB, of the next host {again} kB");
    assert!(
        again < at_start + MORE_AT_START,
        "the next host took {again} kB"
    );
}

/// Ends the attacks when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn count_descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

type Attack = Box<dyn Fn(TcpStream, usize, &AtomicBool) -> io::Result<()> + Sync>;

/// Sends these requests, and leaves at once.
fn leave(requests: Vec<u8>) -> Attack {
    Box::new(move |mut to, _, _| to.write_all(&requests))
}

/// Sends these requests, and takes one answer.
fn ask(requests: Vec<u8>) -> Attack {
    Box::new(move |mut to, _, _| {
        to.write_all(&requests)?;
        read_one(to)
    })
}

/// Sends these requests, and keeps the connection.
fn keep(requests: Vec<u8>) -> Attack {
    Box::new(move |mut to, _, is_over| {
        to.write_all(&requests)?;
        hold(to, is_over)
    })
}

/// Sends this request over and over, and takes no answer.
fn ignore(request: Vec<u8>) -> Attack {
    Box::new(move |to, _, is_over| ignore_answers(to, is_over, &request))
}

/// What hostile or broken clients can do:
///
/// - answers that nobody reads: messages, metadata of many names, committed offsets, one partition asked for over and over,
///   long lines;
/// - requests of which half comes, or one byte at a time;
/// - work for a client that has left: searches by time, in one topic and in many;
/// - fetches that wait for long, alone, before other requests, or with a large request;
/// - thousands of groups and of topics, and commits with much metadata;
/// - offsets and names that cannot be, connections that ask nothing, random bytes;
/// - messages as large as can be, written without reading the answers.
fn attacks() -> Vec<Attack> {
    let names: Vec<_> = (0..11_000).map(|n| format!("topic-{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut half = frame(PRODUCE, 2, &vec![0; MOST_BYTES]);
    half.truncate(MOST_BYTES / 2);
    let mut half_of_medium_size = frame(PRODUCE, 2, &[0; 200_000]);
    half_of_medium_size.truncate(100_000);
    let absurd_offsets = [i64::MIN, -1, i64::MAX, i64::MAX - 1];
    let absurd_offsets = absurd_offsets.map(|offset| fetch("big", offset, i32::MIN, i32::MIN));
    let absurd_names = metadata(&[&"n".repeat(30_000), "..", "/etc", "__x", "\n"]);
    let wait = fetch("big", BIG as i64, 1, i32::MAX);
    let groups = (0..2000).map(|n| commit(&format!("{n}"), &["big"], i64::MIN, "m"));
    let offsets = list(&["big"; 100_000], |bytes, name| {
        bytes.extend(string(name));
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    });
    let repeated = list(&["big"; 300_000], |bytes, name| {
        bytes.extend(string(name));
        bytes.extend(1i32.to_be_bytes());
        bytes.extend(fetch_partition(0, i32::MAX));
    });
    let repeated = [&[0xff; 4][..], &[0; 4], &[0, 0, 0, 1], &repeated].concat();
    let mut set = Vec::new();
    while set.len() < MOST_BYTES - 1_000_000 {
        set.extend(message(0, &[b'x'; 500_000]));
    }
    vec![
        ignore(fetch("big", 0, i32::MAX, 1)),
        ignore(metadata(&vec![""; MOST_BYTES / 2])),
        ignore(metadata(&names)),
        ignore(metadata(&names[..3000])),
        keep(half),
        keep(half_of_medium_size),
        ask(groups.collect::<Vec<_>>().concat()),
        ignore(frame(OFFSET_FETCH, 1, &[string("0-0"), offsets].concat())),
        leave(list_offsets(300)),
        leave(list_offsets(MOST_BYTES / 12 - 10)),
        keep(wait.repeat(2)),
        keep([&wait[..], &vec![0; 5000]].concat()),
        keep(frame(
            FETCH,
            2,
            &[&wait[14..], &vec![0; 6_000_000]].concat(),
        )),
        ignore(fetch("long", 0, 1, 0).repeat(40)),
        leave(list_by_time(&OLD)),
        ask([absurd_offsets.concat(), absurd_names].concat()),
        keep(Vec::new()),
        ignore(frame(FETCH, 2, &repeated)),
        Box::new(|mut to, n, _| {
            let large = "m".repeat(4096);
            for round in 0..500 {
                to.write_all(&commit(&format!("{n}-{round}"), &["big"; 4], 5, &large))?;
            }
            read_one(to)
        }),
        Box::new(|mut to, _, is_over| {
            to.write_all(&(8i32 << 20).to_be_bytes())?;
            while !is_over.load(Ordering::Relaxed) {
                to.write_all(&[0])?;
                thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        }),
        Box::new(|mut to, n, _| {
            let bytes = random_lines(n as u64 + 1, 100, 99);
            to.write_all(&frame((n % 20) as i16, (n % 3) as i16, &bytes))?;
            to.write_all(&bytes)
        }),
        Box::new(move |to, n, is_over| {
            let topic = format!("junk-{}", n % 20);
            ask_for(&to, &topic)?;
            ignore_answers(to, is_over, &produce(&topic, &set))
        }),
    ]
}

/// Sends a request over and over, takes no answer, and keeps the connection open for a while.
fn ignore_answers(mut to: TcpStream, is_over: &AtomicBool, request: &[u8]) -> io::Result<()> {
    setsockopt(&to, RcvBuf, &4096)?;
    to.set_write_timeout(Some(Duration::from_millis(500)))?;
    for _ in 0..20 {
        if is_over.load(Ordering::Relaxed) || to.write_all(request).is_err() {
            break;
        }
    }
    hold(to, is_over)
}

/// Keeps a connection open, without reading, for some seconds or until the broker closes it.
fn hold(to: TcpStream, is_over: &AtomicBool) -> io::Result<()> {
    let end = Instant::now() + Duration::from_secs(5);
    to.set_nonblocking(true)?;
    while Instant::now() < end && !is_over.load(Ordering::Relaxed) {
        if matches!(to.peek(&mut [0]), Ok(0)) {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn read_one(mut from: TcpStream) -> io::Result<()> {
    from.set_read_timeout(Some(Duration::from_secs(1)))?;
    from.read_exact(&mut [0; 4])
}

/// Asks for a topic, which creates it, and waits for the answer.
fn ask_for(mut to: &TcpStream, topic: &str) -> io::Result<()> {
    to.write_all(&metadata(&[topic]))?;
    let mut size = [0; 4];
    to.read_exact(&mut size)?;
    let size = u32::from_be_bytes(size);
    io::copy(&mut to.take(u64::from(size)), &mut io::sink()).map(drop)
}

/// A request with its size and its header.
fn frame(api_key: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let size = (10 + body.len()) as i32;
    let head = [
        &api_key.to_be_bytes()[..],
        &version.to_be_bytes(),
        &[0; 4],
        &[0xff; 2],
    ];
    [&size.to_be_bytes()[..], &head.concat(), body].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as i16).to_be_bytes(), text.as_bytes()].concat()
}

fn list<T>(elements: &[T], write: impl Fn(&mut Vec<u8>, &T)) -> Vec<u8> {
    let mut bytes = (elements.len() as i32).to_be_bytes().to_vec();
    elements
        .iter()
        .for_each(|element| write(&mut bytes, element));
    bytes
}

fn metadata(names: &[&str]) -> Vec<u8> {
    frame(
        METADATA,
        1,
        &list(names, |bytes, name| bytes.extend(string(name))),
    )
}

fn fetch_partition(offset: i64, max_bytes: i32) -> Vec<u8> {
    [&[0; 4], &offset.to_be_bytes()[..], &max_bytes.to_be_bytes()].concat()
}

fn fetch(topic: &str, offset: i64, max_bytes: i32, max_wait_ms: i32) -> Vec<u8> {
    let topics = list(&[topic], |bytes, name| {
        bytes.extend(string(name));
        bytes.extend(1i32.to_be_bytes());
        bytes.extend(fetch_partition(offset, max_bytes));
    });
    let wait = max_wait_ms.to_be_bytes();
    frame(
        FETCH,
        2,
        &[&[0xff; 4], &wait[..], &[0, 0, 0, 1], &topics].concat(),
    )
}

/// One request that asks so often for the first message after a time that no message has.
fn list_offsets(entries: usize) -> Vec<u8> {
    let partitions = list(&vec![(); entries], |bytes, ()| {
        bytes.extend([0; 4]);
        bytes.extend(1i64.to_be_bytes());
    });
    let topics = [&[0, 0, 0, 1][..], &string("big"), &partitions].concat();
    frame(LIST_OFFSETS, 1, &[&[0xff; 4][..], &topics].concat())
}

/// One request for the first message of each topic after a time that no message has.
fn list_by_time(topics: &[&str]) -> Vec<u8> {
    let topics = list(topics, |bytes, name| {
        bytes.extend(string(name));
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]);
        bytes.extend(1i64.to_be_bytes());
    });
    frame(LIST_OFFSETS, 1, &[&[0xff; 4][..], &topics].concat())
}

fn commit(group: &str, topics: &[&str], offset: i64, metadata: &str) -> Vec<u8> {
    let topics = list(topics, |bytes, name| {
        bytes.extend(string(name));
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]);
        bytes.extend(offset.to_be_bytes());
        bytes.extend(string(metadata));
    });
    let rest = [&[0xff; 4][..], &string(""), &[0xff; 8], &topics].concat();
    frame(OFFSET_COMMIT, 2, &[string(group), rest].concat())
}

fn produce(topic: &str, set: &[u8]) -> Vec<u8> {
    let size = (set.len() as i32).to_be_bytes();
    let head = [
        &[0, 1, 0, 0, 0, 9, 0, 0, 0, 1][..],
        &string(topic),
        &[0, 0, 0, 1, 0, 0, 0, 0],
    ];
    frame(PRODUCE, 2, &[&head.concat(), &size[..], set].concat())
}
