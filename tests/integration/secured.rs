//! A secured cluster: TLS, SASL, and access control lists. Its users are alice and bob, its
//! certificate is for `localhost`, and of its topics `unreadable` and `unwritable` are just that.

use crate::support::{Ended, Kafka, setting, user};
use crate::tty::{CTRL_D, Tty};

/// The passwords, and a wrong one: none may be printed.
const SECRETS: [&str; 3] = ["alice-secret", "bob-secret", "wrong-secret"];

/// A file of the cluster.
fn file(name: &str) -> String {
    format!("{}/{name}", setting("KAFKA_CHAT_TEST_DIR"))
}

/// The cluster by its listener for this protocol.
fn listener(protocol: &str) -> Kafka {
    let info = std::fs::read_to_string(file("info")).unwrap();
    let mut addresses = info.lines().filter_map(|line| line.split_once('='));
    let (_, address) = addresses.find(|(name, _)| *name == protocol).unwrap();
    Kafka::Real(address.to_string())
}

/// Properties as arguments.
fn options(properties: &[(&str, &str)]) -> Vec<String> {
    let option = |(name, value): &(&str, &str)| ["-X".to_string(), format!("{name}={value}")];
    properties.iter().flat_map(option).collect()
}

fn login(protocol: &str, mechanism: &str, user: &str, password: &str) -> Vec<String> {
    options(&[
        ("security.protocol", protocol),
        ("sasl.mechanism", mechanism),
        ("sasl.username", user),
        ("sasl.password", password),
    ])
}

#[track_caller]
fn shows_no_secret(ended: &Ended) {
    let has_secret = SECRETS.iter().any(|secret| ended.stderr.contains(secret));
    assert!(!has_secret, "{}", ended.report());
}

/// One line from alice to bob, each with their own login.
fn one_line_goes_through(on: &Kafka, alice: &[String], bob: &[String]) {
    let topic = user("bob");
    on.program("publisher", &["alice", &topic])
        .args(alice)
        .input("hello\n")
        .run()
        .code(0);
    on.program("subscriber", &[&topic, "--from", "earliest", "-e", "-s"])
        .args(bob)
        .run()
        .code(0)
        .prints("alice: hello\n");
}

#[test]
#[ignore = "needs a secured Kafka"]
fn sasl_plain_without_tls_needs_no_openssl() {
    let login = |name| login("sasl_plaintext", "PLAIN", name, &format!("{name}-secret"));
    one_line_goes_through(&listener("SASL_PLAINTEXT"), &login("alice"), &login("bob"));
}

#[test]
#[ignore = "needs a secured Kafka"]
fn a_missing_login_is_reported() {
    let on = listener("SASL_PLAINTEXT");
    refused(
        &on,
        &[],
        &["closed the connection", "a login", "sasl.username"],
    );
}

/// Both programs fail with one error and a hint, which say this and no password.
#[track_caller]
fn refused(on: &Kafka, options: &[String], says: &[&str]) {
    for (program, arguments) in [
        ("publisher", &["alice", "bob"][..]),
        ("subscriber", &["bob"]),
    ] {
        let ended = on.program(program, arguments).args(options).run().code(1);
        shows_no_secret(&ended);
        let lines = ended.stderr.lines().count();
        assert!(lines <= 2, "{lines} lines\n{}", ended.report());
        ended
            .says(&[&format!("{program}: cannot "), &on.servers()])
            .says(says);
    }
}

#[cfg(not(feature = "tls"))]
#[test]
#[ignore = "needs a secured Kafka"]
fn a_property_that_needs_openssl_is_a_usage_error_that_names_the_feature() {
    for options in [
        login("sasl_ssl", "PLAIN", "alice", "alice-secret"),
        login("sasl_plaintext", "SCRAM-SHA-256", "alice", "alice-secret"),
    ] {
        let on = listener("SASL_PLAINTEXT");
        let ended = on.program("subscriber", &["bob"]).args(&options).run();
        shows_no_secret(&ended);
        ended.code(2).says(&["--features tls"]);
    }
}

/// Opens a chat over a connection without TLS.
fn chat_without_tls(me: &str, peer: &str) -> Tty {
    let login = login("sasl_plaintext", "PLAIN", "alice", "alice-secret");
    let login: Vec<&str> = login.iter().map(String::as_str).collect();
    listener("SASL_PLAINTEXT").chat_with(me, peer, &login)
}

#[test]
#[ignore = "needs a secured Kafka"]
fn heartbeats_that_may_not_be_committed_are_said_once_and_lines_go_both_ways() {
    let peer = user("bob");
    let shy = chat_without_tls("shy", &peer);
    shy.wait_for("cannot tell who is here: cannot commit offsets of group here:shy:");
    let bob = chat_without_tls(&peer, "shy");
    shy.wait_for(&format!("* {peer} is here"));
    shy.line("hello");
    bob.wait_for("shy: hello");
    bob.line("hi");
    shy.wait_for(&format!("{peer}: hi"));
    shy.keys(CTRL_D);
    shy.ends_with(0).has_shown_times("cannot tell", 1);
    bob.keys(CTRL_D);
    bob.ends_with(0).has_not_shown("is here");
}

#[test]
#[ignore = "needs a secured Kafka"]
fn heartbeats_that_may_not_be_looked_up_are_said_once() {
    let me = user("alice");
    let chat = chat_without_tls(&me, "hidden");
    chat.wait_for("cannot tell who is here: cannot read the offsets of group here:hidden:");
    chat.wait_for("cannot tell what hidden has read");
    chat.line("hello");
    listener("SASL_PLAINTEXT")
        .program("subscriber", &["hidden", "--from", "earliest", "-n", "1"])
        .args(login("sasl_plaintext", "PLAIN", "bob", "bob-secret"))
        .run()
        .code(0);
    chat.keys(CTRL_D);
    let chat = chat.ends_with(0);
    chat.has_shown_times("cannot tell who is here", 1);
    chat.has_not_shown("not read by");
}

#[test]
#[ignore = "needs a secured Kafka"]
fn a_topic_that_may_not_be_read_is_named_once_as_why_own_lines_are_not_shown() {
    let me = user("alice");
    let publisher = listener("SASL_PLAINTEXT").program("publisher", &[&me, "unreadable"]);
    let publisher = publisher.args(login("sasl_plaintext", "PLAIN", "alice", "alice-secret"));
    publisher.input("hello\n").run().code(0);
    let chat = chat_without_tls(&me, "unreadable");
    chat.wait_for("* your own earlier lines are not shown: cannot read topic unreadable at ");
    chat.keys(CTRL_D);
    let chat = chat.ends_with(0);
    chat.has_shown_times("unreadable at", 1);
}

#[cfg(feature = "tls")]
mod tls {
    use std::io::Write as _;

    use super::*;
    use crate::support::Program;

    /// The options of a login over TLS, with the cluster's own CA.
    fn secured(mechanism: &str, user: &str, password: &str) -> Vec<String> {
        let mut all = login("sasl_ssl", mechanism, user, password);
        all.extend(options(&[("ssl.ca.location", &file("ca.pem"))]));
        all
    }

    fn alice() -> Vec<String> {
        secured("SCRAM-SHA-256", "alice", "alice-secret")
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_line_goes_through_with_either_mechanism_by_options() {
        let on = listener("SASL_SSL");
        for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
            let bob = secured(mechanism, "bob", "bob-secret");
            one_line_goes_through(&on, &secured(mechanism, "alice", "alice-secret"), &bob);
        }
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_line_goes_through_with_either_mechanism_by_a_file_of_either_style() {
        let on = listener("SASL_SSL");
        for style in ["client", "librdkafka"] {
            for mechanism in ["plain", "scram"] {
                let by_file = |name| {
                    let name = format!("{style}-{name}-{mechanism}.properties");
                    ["-F".to_string(), file(&name)]
                };
                one_line_goes_through(&on, &by_file("alice"), &by_file("bob"));
            }
        }
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_file_with_the_servers_and_the_login_is_enough() {
        let mut properties = std::fs::read(file("client-alice-scram.properties")).unwrap();
        let servers = listener("SASL_SSL").servers();
        properties.extend(format!("bootstrap.servers={servers}\n").bytes());
        let mut cloud = tempfile::NamedTempFile::new().unwrap();
        cloud.write_all(&properties).unwrap();
        let by_file = |name, arguments: &[&str]| {
            let program = Program::ours(name, arguments);
            program.arg("-F").arg(cloud.path())
        };
        let topic = user("bob");
        let publisher = by_file("publisher", &["alice", &topic]);
        publisher.input("hello\n").run().code(0);
        by_file("subscriber", &[&topic, "--from", "earliest", "-e"])
            .run()
            .code(0)
            .prints("hello\n");
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn two_users_chat_over_tls() {
        let on = listener("SASL_SSL");
        let (me, peer) = (user("alice"), user("bob"));
        let start = |names: &[&str], options| on.program("chat", names).args(options).start();
        let mut alice = start(&[&me, &peer], alice());
        let mut bob = start(&[&peer, &me], secured("PLAIN", "bob", "bob-secret"));
        alice.write("hello\n");
        bob.wait_for("hello\n");
        bob.write("hello yourself\n");
        alice.wait_for("hello yourself\n");
        for mut chat in [alice, bob] {
            chat.close();
            chat.wait().code(0);
        }
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_wrong_password_is_reported_and_not_shown() {
        for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
            let options = secured(mechanism, "alice", "wrong-secret");
            let says = ["cannot log in", "nvalid", "sasl.password"];
            refused(&listener("SASL_SSL"), &options, &says);
        }
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn librdkafkas_own_log_shows_no_password() {
        let ended = listener("SASL_SSL")
            .program("publisher", &["alice", &user("bob")])
            .args(alice())
            .args(["-X", "debug=all"])
            .input("hello\n")
            .run()
            .code(0)
            .says(&["sasl.password = [redacted]"]);
        shows_no_secret(&ended);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn an_unknown_certificate_authority_is_reported() {
        let mut options = alice();
        options.extend(super::options(&[(
            "ssl.ca.location",
            &file("other-ca.pem"),
        )]));
        let says = ["not signed by an authority known here", "ssl.ca.location"];
        refused(&listener("SASL_SSL"), &options, &says);
        // The system's authorities have not signed it, either.
        let options = login("sasl_ssl", "PLAIN", "alice", "alice-secret");
        refused(&listener("SASL_SSL"), &options, &says);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_host_name_that_is_not_in_the_certificate_is_reported() {
        let servers = listener("SASL_SSL").servers();
        let on = Kafka::Real(servers.replace("localhost", "127.0.0.1"));
        refused(&on, &alice(), &["made out for another host name"]);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn plain_text_to_a_tls_port_is_reported() {
        for protocol in ["SSL", "SASL_SSL"] {
            let on = listener(protocol);
            // With a property, too, the broker is probed first.
            for options in [vec![], options(&[("check.crcs", "true")])] {
                refused(&on, &options, &["it speaks TLS", "security.protocol"]);
            }
        }
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn tls_to_a_plain_port_is_reported() {
        let on = listener("SASL_PLAINTEXT");
        refused(&on, &alice(), &["does not speak TLS", "security.protocol"]);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_missing_login_over_tls_is_reported() {
        let (protocol, ca) = (("security.protocol", "ssl"), file("ca.pem"));
        let options = options(&[protocol, ("ssl.ca.location", &ca)]);
        let says = ["closed the connection", "a login", "sasl.username"];
        refused(&listener("SASL_SSL"), &options, &says);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_topic_without_permission_to_read_is_named() {
        let on = listener("SASL_SSL");
        for (program, names) in [
            ("subscriber", &["unreadable"][..]),
            ("chat", &["unreadable", "alice"]),
        ] {
            // Standard input stays open: it is not its end that ends the chat.
            let ended = on
                .program(program, names)
                .args(alice())
                .start()
                .wait()
                .code(1);
            shows_no_secret(&ended);
            ended.says(&["cannot read topic unreadable", "not allowed"]);
        }
        // It can be written to.
        let publisher = on.program("publisher", &["alice", "unreadable"]);
        publisher.args(alice()).input("hello\n").run().code(0);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_topic_without_permission_to_write_is_named() {
        let on = listener("SASL_SSL");
        for program in ["publisher", "chat"] {
            let ended = on
                .program(program, &[&user("alice"), "unwritable"])
                .args(alice())
                .input("hello\n")
                .run()
                .code(1);
            shows_no_secret(&ended);
            ended.says(&["cannot write to topic unwritable", "not allowed"]);
        }
        // It can be read.
        on.program("subscriber", &["unwritable", "--from", "earliest", "-e"])
            .args(alice())
            .run()
            .code(0)
            .prints("");
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_piped_chat_stops_at_the_first_line_that_may_not_be_written() {
        let on = listener("SASL_SSL");
        // Standard input stays open: it is not its end that ends the chat.
        let mut chat = on
            .program("chat", &[&user("alice"), "unwritable"])
            .args(alice())
            .start();
        chat.write("hello\nhello again\n");
        let ended = chat.wait().code(1);
        ended.says(&["stopped reading after line", "not allowed"]);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_position_that_may_not_be_looked_up_is_said_once_and_nothing_about_reading() {
        let on = listener("SASL_SSL");
        let me = user("alice");
        let login = alice();
        let login: Vec<&str> = login.iter().map(String::as_str).collect();
        let chat = on.chat_with(&me, "hidden", &login);
        let notice = "cannot tell what hidden has read";
        chat.wait_for(notice);
        chat.line("hello");
        on.program("subscriber", &["hidden", "--from", "earliest", "-n", "1"])
            .args(alice())
            .run()
            .code(0);
        chat.keys(crate::tty::CTRL_D);
        let chat = chat.ends_with(0);
        chat.has_shown_times(notice, 1);
        chat.has_shown_times("cannot tell who is here", 1);
        chat.has_not_shown("not read by");
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_group_that_may_not_be_used_is_an_error_that_says_so() {
        let on = listener("SASL_SSL");
        let ended = on
            .program("chat", &["hidden", &user("alice")])
            .args(alice())
            .start()
            .wait()
            .code(1);
        ended.says(&[
            "cannot read the offsets of group chat:hidden:",
            "not allowed",
        ]);
    }
}
