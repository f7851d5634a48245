//! A secured cluster: TLS, SASL, and access control lists. Its users are alice and bob, its
//! certificate is for `localhost`, and of its topics `unreadable` and `unwritable` are just that.

use crate::support::{Ended, Kafka, setting, user};

/// What must never be seen: the passwords, and one that is wrong.
const SECRETS: [&str; 3] = ["alice-secret", "bob-secret", "wrong-secret"];

/// A file of the cluster.
fn file(name: &str) -> String {
    format!("{}/{name}", setting("KAFKA_CHAT_TEST_DIR"))
}

/// Where the cluster listens for this protocol, as it wrote down itself.
fn listener(protocol: &str) -> Kafka {
    let info = std::fs::read_to_string(file("info")).unwrap();
    let mut addresses = info.lines().filter_map(|line| line.split_once('='));
    let (_, address) = addresses.find(|(name, _)| *name == protocol).unwrap();
    Kafka::Real(address.to_string())
}

/// Properties as the command line has them.
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
    for secret in SECRETS {
        assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
    }
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
fn a_login_by_plain_without_tls_needs_no_openssl() {
    let login = |name| login("sasl_plaintext", "PLAIN", name, &format!("{name}-secret"));
    one_line_goes_through(&listener("SASL_PLAINTEXT"), &login("alice"), &login("bob"));
}

#[test]
#[ignore = "needs a secured Kafka"]
fn a_login_left_out_is_told() {
    let on = listener("SASL_PLAINTEXT");
    refused(
        &on,
        &[],
        &["closed the connection", "a login", "sasl.username"],
    );
}

/// Both programs end with 1 and one sentence with a hint, which say this and no password.
#[track_caller]
fn refused(on: &Kafka, options: &[String], says: &[&str]) {
    for (program, arguments) in [
        ("publisher", &["alice", "bob"][..]),
        ("subscriber", &["bob"]),
    ] {
        let ended = on.program(program, arguments).args(options).run().code(1);
        shows_no_secret(&ended);
        let lines = ended.stderr.lines().count();
        assert!(lines <= 2, "{lines} lines of\n{}", ended.stderr);
        ended
            .says(&[&format!("{program}: cannot "), &on.servers()])
            .says(says);
    }
}

#[cfg(not(feature = "tls"))]
#[test]
#[ignore = "needs a secured Kafka"]
fn what_needs_openssl_says_which_feature_to_build() {
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

#[cfg(feature = "tls")]
mod tls {
    use super::*;

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
    fn a_wrong_password_is_told_and_not_shown() {
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
    fn an_authority_that_is_not_known_is_told() {
        let mut options = alice();
        options.extend(super::options(&[(
            "ssl.ca.location",
            &file("other-ca.pem"),
        )]));
        let says = ["not signed by an authority known here", "ssl.ca.location"];
        refused(&listener("SASL_SSL"), &options, &says);
        // The system knows none that has signed it, either.
        let options = login("sasl_ssl", "PLAIN", "alice", "alice-secret");
        refused(&listener("SASL_SSL"), &options, &says);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_host_name_that_the_certificate_does_not_have_is_told() {
        let servers = listener("SASL_SSL").servers();
        let on = Kafka::Real(servers.replace("localhost", "127.0.0.1"));
        refused(&on, &alice(), &["made out for another host name"]);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_tls_port_spoken_to_in_plain_is_told() {
        for protocol in ["SSL", "SASL_SSL"] {
            let on = listener(protocol);
            refused(&on, &[], &["it speaks TLS", "security.protocol"]);
            // The same without the first question, which any property leaves out.
            let options = options(&[("check.crcs", "true")]);
            refused(&on, &options, &["as a TLS port does", "security.protocol"]);
        }
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_plain_port_spoken_to_in_tls_is_told() {
        let on = listener("SASL_PLAINTEXT");
        refused(&on, &alice(), &["does not speak TLS", "security.protocol"]);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_login_left_out_is_told_over_tls() {
        let (protocol, ca) = (("security.protocol", "ssl"), file("ca.pem"));
        let options = options(&[protocol, ("ssl.ca.location", &ca)]);
        let says = ["closed the connection", "a login", "sasl.username"];
        refused(&listener("SASL_SSL"), &options, &says);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_topic_that_may_not_be_read_is_named() {
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
        // It may be written to.
        let publisher = on.program("publisher", &["alice", "unreadable"]);
        publisher.args(alice()).input("hello\n").run().code(0);
    }

    #[test]
    #[ignore = "needs a secured Kafka"]
    fn a_topic_that_may_not_be_written_to_is_named() {
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
        // It may be read.
        on.program("subscriber", &["unwritable", "--from", "earliest", "-e"])
            .args(alice())
            .run()
            .code(0)
            .prints("");
    }
}
