//! A user's name, which is also the name of their topic.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The longest legal topic name, in bytes: Kafka makes file names of them.
const LONGEST: usize = 249;

/// A user's name: 1 to 249 of `A-Z a-z 0-9 . _ -`, so that it can be the name of a Kafka topic.
///
/// The rules are Kafka's own ([`Topic.validate`]), and one more: names that start with `__` are
/// left to Kafka, which keeps its consumer offsets in such a topic.
///
/// [`Topic.validate`]: https://kafka.apache.org/documentation/#topicconfigs
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as the bytes of a record's key.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl FromStr for Name {
    type Err = Error;

    /// Fails with a usage error that says which rule the name breaks.
    fn from_str(text: &str) -> Result<Name> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let broken = if text.is_empty() {
            "a name can't be empty".to_string()
        } else if text == "." || text == ".." {
            format!("'{text}' can't be a name, because it can't be the name of a Kafka topic")
        } else if let Some(bad) = text.chars().find(|&c| !legal(c)) {
            format!(
                "'{}' can't be a name: {} is not among the letters A-Z and a-z, digits, '.', '_' and '-'",
                text.escape_debug(),
                match bad {
                    ' ' => "a space".to_string(),
                    c => format!("'{}'", c.escape_debug()),
                }
            )
        } else if text.len() > LONGEST {
            format!(
                "a name can have at most {LONGEST} characters, and this one has {}",
                text.len()
            )
        } else if text.starts_with("__") {
            format!("'{text}' can't be a name: Kafka keeps names that start with '__' for itself")
        } else {
            return Ok(Name(text.to_string()));
        };
        Err(Error::usage(broken))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kafka_takes_are_taken() {
        for name in ["a", "Alice", "bob.smith_2-x", "...", "_x", &"n".repeat(249)] {
            assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_bad_name_is_refused_with_the_rule_it_breaks() {
        for (name, rule) in [
            ("", "empty"),
            (".", "can't be the name of a Kafka topic"),
            ("..", "can't be the name of a Kafka topic"),
            ("a/b", "'/' is not among"),
            ("a b", "a space is not among"),
            ("tuấn", "'ấ' is not among"),
            ("a\u{1b}[2J", "'\\u{1b}' is not among"),
            ("__consumer_offsets", "for itself"),
            (&"n".repeat(250), "at most 249"),
        ] {
            let error = name.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains(rule), "{name:?}: {error}");
        }
    }
}
