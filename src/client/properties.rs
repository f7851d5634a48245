//! A properties file, as kcat's `-F` and Kafka's own tools read it, in librdkafka's names.

use crate::error::{Error, Result};

/// Properties of Kafka's Java clients, often found on a cloud's page, that mean nothing here:
/// what they configure is either Java's own or fixed by what the programs do.
const JAVA_ONLY: &[&str] = &[
    "auto.include.jmx.reporter",
    "basic.auth.credentials.source",
    "basic.auth.user.info",
    "buffer.memory",
    "default.api.timeout.ms",
    "exclude.internal.topics",
    "interceptor.classes",
    "key.deserializer",
    "key.serializer",
    "max.block.ms",
    "max.poll.records",
    "metric.reporters",
    "metrics.num.samples",
    "metrics.recording.level",
    "metrics.sample.window.ms",
    "partitioner.class",
    "partitioner.ignore.keys",
    "sasl.client.callback.handler.class",
    "sasl.login.callback.handler.class",
    "sasl.login.class",
    "schema.registry.url",
    "security.providers",
    "ssl.engine.factory.class",
    "ssl.protocol",
    "ssl.enabled.protocols",
    "ssl.keymanager.algorithm",
    "ssl.trustmanager.algorithm",
    "value.deserializer",
    "value.serializer",
];

/// Properties that librdkafka knows under two names.
const ALIASES: &[(&str, &str)] = &[
    ("acks", "request.required.acks"),
    ("bootstrap.servers", "metadata.broker.list"),
    ("compression.codec", "compression.type"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("linger.ms", "queue.buffering.max.ms"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("retries", "message.send.max.retries"),
    ("sasl.mechanism", "sasl.mechanisms"),
];

/// A property's name, or the first one of two. So of two values, the one given last counts.
pub fn first_name(name: &str) -> &str {
    let alias = ALIASES.iter().find(|(_, other)| *other == name);
    alias.map_or(name, |(first, _)| first)
}

/// A property's first name, the values that the rule is about, and what would come of them.
type Rule = (&'static str, fn(&str) -> bool, &'static str);

/// Properties with which what the programs say would not be true.
const UNTRUE: &[Rule] = &[
    (
        "acks",
        |value| value == "0",
        "no broker would acknowledge a line, so a lost one could not be told from a delivered one",
    ),
    (
        "delivery.report.only.error",
        is_true,
        "the programs must learn which lines were delivered",
    ),
    (
        "transactional.id",
        |_| true,
        "the programs write outside of transactions",
    ),
    (
        "queuing.strategy",
        |value| value != "fifo",
        "lines would be sent out of order",
    ),
    (
        "partitioner",
        |value| value == "random",
        "a sender's lines would be spread over partitions, and so lose their order",
    ),
    (
        "offset.store.method",
        |value| value != "broker",
        "what a chat has read is an offset that the broker keeps",
    ),
    (
        "test.mock.num.brokers",
        |value| value != "0",
        "lines would go to a broker inside this program, and end with it",
    ),
];

/// Properties that weaken what an acknowledgement means.
#[cfg(feature = "librdkafka")]
const WEAK: &[Rule] = &[
    (
        "acks",
        |value| !["-1", "all"].contains(&value),
        "an acknowledged line can be lost with a broker",
    ),
    (
        "enable.idempotence",
        |value| !is_true(value),
        "a line that is sent again can be in the topic twice, or out of order",
    ),
    (
        "max.in.flight",
        |value| value != "1",
        "acknowledged lines can be lost while a topic is new",
    ),
];

/// How a warning of them ends.
#[cfg(feature = "librdkafka")]
const WEAK_EXIT: &str = "Exit code 0 then means only that the lines were handed over.";

/// As librdkafka reads it.
pub(super) fn is_true(value: &str) -> bool {
    ["true", "t", "1"].contains(&value)
}

/// Refuses properties with which what the programs say would not be true.
pub(super) fn check(properties: &[(String, String)]) -> Result<()> {
    match matching(UNTRUE, properties).next() {
        Some((name, why)) => Err(Error::usage(format!("{name} cannot be set so: {why}"))),
        None => Ok(()),
    }
}

/// A warning for a writer whose acknowledgements mean less than the programs promise.
#[cfg(feature = "librdkafka")]
pub(super) fn weakness(properties: &[(String, String)]) -> Option<String> {
    let warnings: Vec<_> = matching(WEAK, properties)
        .map(|(name, why)| format!("Warning: with this {name}, {why}."))
        .collect();
    (!warnings.is_empty()).then(|| format!("{}\n{WEAK_EXIT}", warnings.join("\n")))
}

/// The rules that apply, each with the name that was given. Of two values, the last one counts.
fn matching<'a>(
    rules: &'a [Rule],
    properties: &'a [(String, String)],
) -> impl Iterator<Item = (&'a str, &'a str)> {
    rules.iter().filter_map(|(rule, applies, why)| {
        let mut given = properties.iter().rev();
        let (name, value) = given.find(|(name, _)| first_name(name) == *rule)?;
        applies(&value.trim().to_lowercase()).then_some((name.as_str(), *why))
    })
}

/// The properties in `text`, in their order, with the names that only Kafka's Java clients know
/// turned into librdkafka's.
///
/// Syntax: `name=value` lines, also with `:`; blank lines and those that start with `#` or `!` are
/// skipped; a `\` at the end of a line continues it, and one before `\ = : # !`, a space, `t`, `n`
/// or `r` is Java's escape. Any other `\` stands for itself, as in a file written for kcat.
///
/// Fails with a usage error that names the line or the property, never its value. It does not check
/// whether a property exists.
pub fn parse(text: &str) -> Result<Vec<(String, String)>> {
    let mut properties = Vec::new();
    // Editors on Windows begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let mut logical = line.trim().to_string();
        if logical.is_empty() || logical.starts_with(['#', '!']) {
            continue;
        }
        while continues(&logical) {
            logical.pop();
            logical.push_str(lines.next().map_or("", |(next, _)| next.trim()));
        }
        let property = split(&logical).filter(|(name, _)| !name.is_empty());
        properties.push(property.ok_or_else(|| {
            Error::usage(format!(
                "line {number} of the properties has no '=' after a name: it should read NAME=VALUE"
            ))
        })?);
    }
    translate(properties)
}

/// Whether the connection is to be encrypted.
pub(super) fn ask_for_tls(properties: &[(String, String)]) -> bool {
    let mut protocols = properties.iter().rev();
    let protocol = protocols.find(|(name, _)| name == "security.protocol");
    protocol.is_some_and(|(_, value)| value.to_lowercase().ends_with("ssl"))
}

/// Whether the next line continues this one: an even number of `\` at its end are escapes themselves.
fn continues(line: &str) -> bool {
    let slashes = line.len() - line.trim_end_matches('\\').len();
    slashes % 2 == 1
}

/// The name and the value of a property: what is before and after the first `=` or `:` that no `\`
/// escapes.
fn split(line: &str) -> Option<(String, String)> {
    let mut escaped = false;
    let (name, value) = line.split_once(|c| {
        let found = !escaped && (c == '=' || c == ':');
        escaped = c == '\\' && !escaped;
        found
    })?;
    Some((unescape(name.trim()), unescape(value.trim())))
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let meant = match (c, rest.peek()) {
            ('\\', Some('t')) => Some('\t'),
            ('\\', Some('n')) => Some('\n'),
            ('\\', Some('r')) => Some('\r'),
            ('\\', Some(&next)) if "\\=:#! ".contains(next) => Some(next),
            _ => None,
        };
        if meant.is_some() {
            rest.next();
        }
        plain.push(meant.unwrap_or(c));
    }
    plain
}

fn translate(properties: Vec<(String, String)>) -> Result<Vec<(String, String)>> {
    let value_of = |wanted: &str| {
        let found = properties.iter().rfind(|(name, _)| name == wanted);
        found.map_or("", |(_, value)| value.as_str())
    };
    let pem_trust = value_of("ssl.truststore.type").eq_ignore_ascii_case("PEM");
    let pem_keys = value_of("ssl.keystore.type").eq_ignore_ascii_case("PEM");
    let mut translated = Vec::with_capacity(properties.len());
    for (name, value) in &properties {
        let mut put = |name: &str, value: &str| translated.push((name.into(), value.into()));
        match name.as_str() {
            "sasl.jaas.config" => {
                put("sasl.username", &jaas(value, "username")?);
                put("sasl.password", &jaas(value, "password")?);
            }
            "ssl.truststore.location" if pem_trust || value.ends_with(".pem") => {
                put("ssl.ca.location", value);
            }
            "ssl.truststore.location" => {
                return Err(Error::usage(
                    "ssl.truststore.location names a Java key store, which this program can't read",
                )
                .hint(
                    "Write its certificates into a PEM file (keytool -list -rfc -keystore FILE) and name that as ssl.ca.location.",
                ));
            }
            "ssl.truststore.certificates" => put("ssl.ca.pem", value),
            "ssl.truststore.password" | "ssl.truststore.type" | "ssl.keystore.type" => {}
            "ssl.keystore.location" if pem_keys => {
                put("ssl.certificate.location", value);
                put("ssl.key.location", value);
            }
            "ssl.keystore.certificate.chain" => put("ssl.certificate.pem", value),
            "ssl.keystore.key" => put("ssl.key.pem", value),
            // In Java, an empty value means that host names are not checked.
            "ssl.endpoint.identification.algorithm" if value.is_empty() => put(name, "none"),
            // The only value besides use_all_dns_ips was dropped by Java's clients, too.
            "client.dns.lookup" if value == "default" => {}
            "max.request.size" => put("message.max.bytes", value),
            // Class names of Java; librdkafka has the same strategies by short names.
            "partition.assignment.strategy" if value.contains("org.apache.kafka") => {}
            java if JAVA_ONLY.contains(&java) => {}
            _ => put(name, value),
        }
    }
    Ok(translated)
}

/// The value of `option` in a JAAS line: `Module required username="alice" password="secret";`.
fn jaas(line: &str, option: &str) -> Result<String> {
    let missing = || {
        Error::usage(format!(
            "sasl.jaas.config has no {option}=\"…\": only user name and password are understood in it"
        ))
    };
    let start = line
        .match_indices(option)
        .find_map(|(at, _)| {
            let apart = line[..at].ends_with(char::is_whitespace);
            let value = line[at + option.len()..].trim_start().strip_prefix('=')?;
            apart.then(|| value.trim_start())
        })
        .ok_or_else(missing)?;
    let Some(quote) = start.chars().next().filter(|c| "\"'".contains(*c)) else {
        let bare = start.split([';', ' ']).next().unwrap_or_default();
        return Ok(bare.to_string());
    };
    let mut value = String::new();
    let mut inside = start[1..].chars();
    while let Some(c) = inside.next() {
        match c {
            '\\' => value.extend(inside.next()),
            c if c == quote => return Ok(value),
            c => value.push(c),
        }
    }
    Err(missing())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |&(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn lines_are_names_and_values_in_order() {
        assert_eq!(
            parsed(
                "# a comment\n! another\r\n\n  linger.ms = 5 \nacks=all\nclient.id: me\nssl.ca.location=\n"
            ),
            pairs(&[
                ("linger.ms", "5"),
                ("acks", "all"),
                ("client.id", "me"),
                ("ssl.ca.location", "")
            ])
        );
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert_eq!(parsed("\u{feff}acks=all\r\n"), pairs(&[("acks", "all")]));
        assert_eq!(parsed("\u{feff}# a comment\n"), pairs(&[]));
    }

    #[test]
    fn what_would_make_the_programs_lie_is_refused() {
        for (name, value) in [
            ("acks", "0"),
            ("request.required.acks", "0"),
            ("delivery.report.only.error", "true"),
            ("transactional.id", "chat"),
            ("queuing.strategy", "lifo"),
            ("partitioner", "random"),
            ("offset.store.method", "file"),
            ("test.mock.num.brokers", "3"),
        ] {
            let error = check(&pairs(&[(name, value)])).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(name), "{error}");
        }
        let allowed = [
            ("acks", "0"),
            ("acks", "all"),
            ("delivery.report.only.error", "false"),
            ("partitioner", "murmur2"),
        ];
        check(&pairs(&allowed)).unwrap();
    }

    #[cfg(feature = "librdkafka")]
    #[test]
    fn weaker_acknowledgements_are_a_warning() {
        for (name, value, warns) in [
            ("acks", "1", true),
            ("acks", "all", false),
            ("acks", "-1", false),
            ("enable.idempotence", "false", true),
            ("enable.idempotence", "true", false),
            ("max.in.flight", "5", true),
            ("max.in.flight", "1", false),
            ("linger.ms", "5", false),
        ] {
            let warning = weakness(&pairs(&[(name, value)]));
            assert_eq!(warning.is_some(), warns, "{name}={value}");
            assert!(warning.is_none_or(|it| it.contains(name)));
        }
    }

    #[test]
    fn values_may_hold_separators_and_comment_signs() {
        assert_eq!(
            parsed("sasl.password=a=b:c#d!e"),
            pairs(&[("sasl.password", "a=b:c#d!e")])
        );
    }

    #[test]
    fn a_backslash_continues_a_line_or_escapes_and_else_stands_for_itself() {
        assert_eq!(
            parsed("debug=broker,\\\n    security\nclient.id=a\\:b\\\\c\\d"),
            pairs(&[("debug", "broker,security"), ("client.id", "a:b\\c\\d")])
        );
    }

    #[test]
    fn a_line_without_a_separator_is_named_by_number_and_not_shown() {
        let error = parse("acks=all\nsecret").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn what_a_cloud_shows_for_java_becomes_librdkafka() {
        let text = "bootstrap.servers=pkc-1.cloud:9092\nsecurity.protocol=SASL_SSL\n\
            sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username='KEY' password=\"s\\\\\"ecret=\";\n\
            sasl.mechanism=PLAIN\nclient.dns.lookup=use_all_dns_ips\nsession.timeout.ms=45000\nacks=all\n\
            ssl.endpoint.identification.algorithm=\nssl.truststore.type=PEM\nssl.truststore.location=/ca\n\
            key.serializer=org.apache.kafka.common.serialization.StringSerializer\n";
        assert_eq!(
            parsed(text),
            pairs(&[
                ("bootstrap.servers", "pkc-1.cloud:9092"),
                ("security.protocol", "SASL_SSL"),
                ("sasl.username", "KEY"),
                ("sasl.password", "s\"ecret="),
                ("sasl.mechanism", "PLAIN"),
                ("client.dns.lookup", "use_all_dns_ips"),
                ("session.timeout.ms", "45000"),
                ("acks", "all"),
                ("ssl.endpoint.identification.algorithm", "none"),
                ("ssl.ca.location", "/ca"),
            ])
        );
    }

    #[test]
    fn a_jaas_line_without_a_password_is_a_usage_error_that_shows_nothing_of_it() {
        let error = parse("sasl.jaas.config=Module required username=\"hidden\";").unwrap_err();
        assert!(error.to_string().contains("password="), "{error}");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }

    #[test]
    fn a_java_key_store_is_refused_with_the_way_out() {
        let error = parse("ssl.truststore.location=/etc/kafka/client.jks").unwrap_err();
        assert!(error.to_string().contains("keytool"), "{error}");
    }
}
