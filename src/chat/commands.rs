//! The commands that a chat suggests to its user.

use crate::name::Name;

/// What such commands need to reach the same Kafka, and to open sealed lines: words of a command line.
#[derive(Debug, Clone, Default)]
pub(super) struct Commands {
    pub(super) connection: Vec<String>,
    /// Empty if lines are not sealed.
    pub(super) secret: Vec<String>,
}

impl Commands {
    /// How to see a message in this topic whole that the chat cuts.
    pub(super) fn see_whole(&self, topic: &Name) -> String {
        let from = ["--from", "earliest"].map(String::from);
        let options = [&self.connection, &self.secret, &from[..]].concat();
        let command = command("subscriber", options, &[topic]);
        format!("to see all of it: {command}")
    }

    /// How `me` can answer someone else than the peer, in lines that are not sealed.
    pub(super) fn answer(&self, me: &Name, other: &Name) -> String {
        let command = command("chat", self.connection.clone(), &[me, other]);
        format!("to answer: {command}")
    }
}

fn command(program: &str, options: Vec<String>, names: &[&Name]) -> String {
    let mut words = vec![program.to_string()];
    words.extend(options);
    // A name may look like an option.
    if names.iter().any(|name| name.as_str().starts_with('-')) {
        words.push("--".into());
    }
    words.extend(names.iter().map(|name| name.to_string()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_options_of_the_chat() {
        let name = |name: &str| name.parse().unwrap();
        let words = |words: &str| words.split(' ').map(String::from).collect();
        let plain = Commands {
            connection: words("-b kafka:9092"),
            ..Commands::default()
        };
        let sealed = Commands {
            secret: words("--secret-file ours"),
            ..plain.clone()
        };
        for (told, expected) in [
            (
                plain.see_whole(&name("alice")),
                "to see all of it: subscriber -b kafka:9092 --from earliest alice",
            ),
            (
                sealed.see_whole(&name("-s")),
                "to see all of it: subscriber -b kafka:9092 --secret-file ours --from earliest -- -s",
            ),
            (
                plain.answer(&name("alice"), &name("carol")),
                "to answer: chat -b kafka:9092 alice carol",
            ),
            (
                Commands::default().answer(&name("-b"), &name("carol")),
                "to answer: chat -- -b carol",
            ),
        ] {
            assert_eq!(told, expected);
        }
    }
}
