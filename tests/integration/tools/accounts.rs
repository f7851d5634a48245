//! Two accounts of one machine on the small broker.
//!
//! Root is always let in, so both are others, which every Debian has.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::{PATIENCE, Program, Running, free_port, poll_until};

/// The accounts' names, and the numbers of Debian.
const HOST: (&str, u32) = ("nobody", 65534);
const GUEST: (&str, u32) = ("daemon", 1);

/// The group that has a shared folder, of which both are.
const GROUP: (&str, u32) = ("users", 100);

/// The small broker's port, and what both accounts need to use it.
struct Machine {
    port: u16,
    /// Copies of the programs, and folders: the build's folder may be closed to other accounts.
    files: TempDir,
    /// The host's folder, and the guest's.
    ours: PathBuf,
    theirs: PathBuf,
}

impl Machine {
    fn new() -> Machine {
        let files = tempfile::tempdir().unwrap();
        fs::set_permissions(files.path(), Permissions::from_mode(0o755)).unwrap();
        for name in ["publisher", "subscriber"] {
            let command = Program::ours(name, &[]).into_command();
            fs::copy(command.get_program(), files.path().join(name)).unwrap();
        }
        // A folder that one account alone can use.
        let folder = |name: &str, (_, owner): (&str, u32)| {
            let folder = files.path().join(name);
            fs::create_dir(&folder).unwrap();
            chown(&folder, Some(owner), None).unwrap();
            fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
            folder
        };
        Machine {
            port: free_port(),
            ours: folder("ours", HOST),
            theirs: folder("theirs", GUEST),
            files,
        }
    }

    /// Any program, as this account.
    fn any(&self, (account, _): (&str, u32), program: impl AsRef<Path>) -> Program {
        let switch = [
            &format!("--reuid={account}"),
            "--regid=nogroup",
            &format!("--groups={}", GROUP.0),
        ];
        Program::other("setpriv", &switch)
            .arg(program.as_ref())
            .env("KAFKA_BOOTSTRAP_SERVERS", "")
    }

    /// One of our programs, as this account, with its log in `folder`.
    fn program(
        &self,
        account: (&str, u32),
        folder: &Path,
        name: &str,
        arguments: &[&str],
    ) -> Program {
        self.any(account, self.files.path().join(name))
            .args(arguments)
            .arg(format!("--embedded={}", self.port))
            .arg("--data-dir")
            .arg(folder)
    }

    /// Starts a reader of bob's topic, which hosts the broker.
    fn host(&self, account: (&str, u32), folder: &Path, options: &[&str]) -> Running {
        let arguments = [&["bob", "--from", "earliest"], options].concat();
        let host = self.program(account, folder, "subscriber", &arguments);
        let host = host.start();
        host.wait_for_notice("small broker of its own");
        host
    }

    /// Starts readers of bob's topic, one with each client. Without the log's folder, they can't host the broker.
    fn readers(&self, account: (&str, u32), options: &[&str]) -> Vec<Running> {
        let folder = self.files.path().join("none");
        let reader = |more: &[&str]| {
            let arguments = [&["bob", "--from", "earliest"], options, more].concat();
            self.program(account, &folder, "subscriber", &arguments)
                .start()
        };
        let mut readers = vec![reader(&[])];
        if cfg!(feature = "librdkafka") {
            readers.push(reader(&["--time"]));
        }
        readers
    }

    fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// A request to append a line to bob's topic, which is not to be answered.
fn produce(line: &str) -> Vec<u8> {
    // Magic, attributes, no key, and the value.
    let mut message = vec![0, 0, 0xff, 0xff, 0xff, 0xff];
    message.extend((line.len() as u32).to_be_bytes());
    message.extend(line.as_bytes());
    let mut set = vec![0; 8];
    set.extend((4 + message.len() as u32).to_be_bytes());
    set.extend(crc32fast::hash(&message).to_be_bytes());
    set.extend(message);
    // Produce, version 0, number 1, no client, no acknowledgement, a second, one topic, one partition: 0.
    let mut request = vec![0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0, 3, 0xe8];
    request.extend([0, 0, 0, 1, 0, 3]);
    request.extend(b"bob");
    request.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    request.extend((set.len() as u32).to_be_bytes());
    request.extend(set);
    [&(request.len() as u32).to_be_bytes()[..], &request].concat()
}

#[test]
#[ignore = "needs root and a second account"]
fn another_account_is_refused_with_a_sentence() {
    let machine = Machine::new();
    let host = machine.host(HOST, &machine.ours, &[]);
    for (program, names) in [
        ("subscriber", &["bob"][..]),
        ("publisher", &["alice", "bob"]),
    ] {
        machine
            .program(GUEST, &machine.theirs, program, names)
            .input("refused\n")
            .run()
            .code(1)
            .says(&[
                "account nobody runs it, and this program runs as account daemon",
                "--shared",
            ]);
    }
    machine
        .program(
            GUEST,
            &machine.theirs,
            "publisher",
            &["alice", "bob", "--shared"],
        )
        .input("refused\n")
        .run()
        .code(1)
        .says(&[
            "account nobody runs it, and it closed the connection",
            "--shared",
        ]);
    let by_address = || {
        machine
            .any(GUEST, machine.files.path().join("publisher"))
            .args(["alice", "bob", "-b", &machine.server()])
            .input("refused\n")
    };
    // It may see a reset or an end, whichever comes first.
    by_address().run().code(1);
    // The account itself, and root, are let in.
    machine
        .program(HOST, &machine.ours, "publisher", &["alice", "bob"])
        .input("of this account\n")
        .run()
        .code(0);
    Program::ours("publisher", &["alice", "bob", "-b", &machine.server()])
        .input("of root\n")
        .run()
        .code(0);
    host.wait_for("of root\n");
    assert_eq!(host.stdout.bytes(), b"of this account\nof root\n");
}

#[test]
#[ignore = "needs root and a second account"]
fn a_request_of_another_account_that_closes_at_once_leaves_no_line() {
    let machine = Machine::new();
    let host = machine.host(HOST, &machine.ours, &[]);
    let request = machine.files.path().join("request");
    let write = |script: &str, account, line: &str| {
        fs::write(&request, produce(line)).unwrap();
        machine
            .any(account, "/bin/bash")
            .args(["-c", script])
            .arg(&request)
            .arg(machine.port.to_string())
    };
    const MANY_AT_ONCE: &str =
        r#"for i in {1..50}; do cat "$0" > "/dev/tcp/127.0.0.1/$1"; done; true"#;
    write(MANY_AT_ONCE, GUEST, "refused").run().code(0);
    // The same request is taken from the host's account, while its connection is open.
    const ONCE: &str = r#"exec 3<> "/dev/tcp/127.0.0.1/$1"; cat "$0" >&3; read -r"#;
    let mut taken = write(ONCE, HOST, "taken").start();
    host.wait_for("taken\n");
    taken.close();
    assert_eq!(host.stdout.bytes(), b"taken\n");
}

#[test]
#[ignore = "needs root and a second account"]
fn with_shared_two_accounts_write_to_each_other() {
    let machine = Machine::new();
    let host = machine.host(HOST, &machine.ours, &["--shared"]);
    host.wait_for_notice("for all accounts of this machine");
    let send = |account, folder, names: [&str; 2], line: &str| {
        let arguments = [&names[..], &["--shared"]].concat();
        let writer = machine.program(account, folder, "publisher", &arguments);
        writer.input(line).run().code(0)
    };
    send(GUEST, &machine.theirs, ["alice", "bob"], "from daemon\n").says(&[
        "Account nobody runs the small broker",
        "cannot take over when that one exits",
    ]);
    host.wait_for("from daemon\n");
    let arguments = ["alice", "--shared", "--from", "earliest", "-n", "1"];
    let reader = machine
        .program(GUEST, &machine.theirs, "subscriber", &arguments)
        .start();
    let own = send(HOST, &machine.ours, ["bob", "alice"], "from nobody\n");
    assert_eq!(own.stderr, "", "{}", own.report());
    reader.wait().code(0).prints("from nobody\n");
}

#[test]
#[ignore = "needs root and a second account"]
fn two_accounts_take_over_from_each_other_in_a_shared_folder() {
    let machine = Machine::new();
    let folder = &machine.ours;
    chown(folder, None, Some(GROUP.1)).unwrap();
    fs::set_permissions(folder, Permissions::from_mode(0o2770)).unwrap();
    let join = |account| {
        let arguments = ["bob", "--from", "earliest", "--shared"];
        machine
            .program(account, folder, "subscriber", &arguments)
            .start()
    };
    let send = |account, line: &str| {
        let arguments = ["alice", "bob", "--shared"];
        let writer = machine.program(account, folder, "publisher", &arguments);
        writer.input(line).run().code(0);
    };
    let first = machine.host(HOST, folder, &["--shared"]);
    let second = join(GUEST);
    second.wait_for_notice("Account nobody runs the small broker");
    second.wait_for_notice("This program can take over");
    send(HOST, "one\n");
    second.wait_for("one\n");
    first.signal("KILL");
    first.wait();
    // Else the publisher may be the host for a moment, and the next reader after it.
    let address = (Ipv4Addr::LOCALHOST, machine.port);
    let is_taken_over = || TcpStream::connect(address).ok();
    poll_until(PATIENCE, || "taken over".into(), is_taken_over);
    send(HOST, "two\n");
    second.wait_for("one\ntwo\n");
    let third = join(HOST);
    third.wait_for("one\ntwo\n");
    third.wait_for_notice("Account daemon runs the small broker");
    second.signal("KILL");
    second.wait();
    send(GUEST, "three\n");
    third.wait_for("one\ntwo\nthree\n");
    assert!(
        !third.stderr.bytes().windows(6).any(|it| it == b"Others"),
        "{}",
        third.report()
    );
}

#[test]
#[ignore = "needs root and a second account"]
fn another_accounts_log_stops_the_programs_that_wait() {
    let machine = Machine::new();
    let host = machine.host(HOST, &machine.ours, &["--shared"]);
    let readers = machine.readers(GUEST, &["--shared"]);
    let arguments = ["alice", "bob", "--shared"];
    let writer = machine.program(HOST, &machine.ours, "publisher", &arguments);
    writer.input("one\n").run().code(0);
    readers.iter().for_each(|it| it.wait_for("one\n"));
    host.signal("KILL");
    host.wait();
    let _other = machine.host(GUEST, &machine.theirs, &["--shared"]);
    for reader in readers {
        reader
            .wait()
            .code(1)
            .says(&["another log is served there now"]);
    }
}

#[test]
#[ignore = "needs root and a second account"]
fn another_account_that_takes_the_port_is_refused() {
    let machine = Machine::new();
    let host = machine.host(HOST, &machine.ours, &[]);
    let readers = machine.readers(HOST, &[]);
    let writer = machine.program(HOST, &machine.ours, "publisher", &["alice", "bob"]);
    writer.input("one\n").run().code(0);
    readers.iter().for_each(|it| it.wait_for("one\n"));
    host.signal("KILL");
    host.wait();
    let _other = machine.host(GUEST, &machine.theirs, &["--shared"]);
    let refused = ["account daemon runs it, and this program runs as account nobody"];
    for reader in readers {
        reader.wait().code(1).says(&refused);
    }
    let newcomer = machine.program(HOST, &machine.ours, "publisher", &["alice", "bob"]);
    newcomer.input("x\n").run().code(1).says(&refused);
}
