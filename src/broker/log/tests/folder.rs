//! The folder of a log: who can use it, its identity, and its room.

use super::*;
use crate::testing::wait_until;

#[test]
fn topics_have_legal_names_and_exist_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let config = Config {
        max_topics: 3,
        ..small()
    };
    let log = open(&dir, &config);
    for name in [
        "",
        ".",
        "..",
        "a/b",
        "../x",
        "__x",
        "tuấn",
        &"n".repeat(250),
    ] {
        let created = log.create_topic(name);
        assert_eq!(created, Err(code::INVALID_TOPIC_EXCEPTION), "{name}");
    }
    let long = "n".repeat(249);
    for name in ["bob", "Alice.2_x-0", &long, "bob"] {
        log.create_topic(name).unwrap();
    }
    assert_eq!(log.create_topic("more"), Err(code::POLICY_VIOLATION));
    drop(log);
    let log = open(&dir, &config);
    assert_eq!(log.topic_names(), ["Alice.2_x-0", "bob", &long]);
    assert!(log.topic("more").is_none());
}

#[test]
fn a_log_has_one_broker_at_a_time_and_keeps_its_identity() {
    let dir = TempDir::new().unwrap();
    let below = dir.path().join("some/where");
    assert_eq!(identity::stored(&below), None);
    let log = Log::open(&below, "127.0.0.1:7", &Arc::new(small())).unwrap();
    let first = identity::stored(&below).unwrap();
    assert_eq!(log.id, first);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(&below).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
    let second = Log::open(&below, "127.0.0.1:8", &Arc::new(small()))
        .unwrap_err()
        .to_string();
    assert!(
        second.contains("the broker at 127.0.0.1:7 is using it"),
        "{second}"
    );
    assert!(second.contains("--data-dir"), "{second}");
    log.release();
    let log = Log::open(&below, "127.0.0.1:8", &Arc::new(small())).unwrap();
    assert_eq!(log.id, first);
}

#[test]
fn a_directory_that_cannot_be_used_is_named_with_the_remedy() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for unusable in [file.join("log"), file.clone()] {
        let error = Log::open(&unusable, "", &Arc::new(small()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("cannot use {}", unusable.display())),
            "{error}"
        );
        let cause = format!("{} is not a folder", file.display());
        assert!(error.contains(&cause), "{error}");
        assert!(error.contains("--data-dir"), "{error}");
    }
}

#[test]
fn only_the_owner_can_use_the_folders_and_files_also_of_an_earlier_version() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    chmod(dir.path(), 0o755).unwrap();
    let (tx, said) = mpsc::channel();
    let config = Config {
        report: Report::to(move |said| tx.send(said.to_string()).unwrap()),
        ..small()
    };
    let everything = || {
        let inside = fs::read_dir(dir.path()).unwrap();
        let inside = inside.map(|entry| entry.unwrap().path());
        inside.chain(files(&dir)).collect::<Vec<_>>()
    };
    bob(&open(&dir, &config)).append(&mut numbered(0)).unwrap();
    for _ in 0..2 {
        assert!(everything().len() >= 4);
        for path in everything() {
            let expected = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode(&path), expected, "{}", path.display());
            chmod(&path, expected | 0o055 & expected >> 3 | 0o044).unwrap();
        }
        bob(&open(&dir, &config)).append(&mut numbered(1)).unwrap();
    }
    assert_eq!(said.try_recv(), Err(mpsc::TryRecvError::Empty));
    chmod(dir.path(), 0o777).unwrap();
    drop(open(&dir, &config));
    let said = said.try_recv().unwrap();
    assert!(
        said.contains(&format!("chmod go-w {}", dir.path().display())),
        "{said}"
    );
}

#[test]
fn in_a_folder_that_its_group_can_write_to_the_group_can_use_everything() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let chmod = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode));
    let warning = |is_shared| {
        let (tx, said) = mpsc::channel();
        let config = Config {
            report: Report::to(move |said| tx.send(said.to_string()).unwrap()),
            is_shared,
            ..small()
        };
        bob(&open(&dir, &config)).append(&mut numbered(0)).unwrap();
        said.try_recv().ok()
    };
    chmod(0o2770).unwrap();
    assert_eq!(warning(true), None);
    let inside = fs::read_dir(dir.path()).unwrap();
    let inside: Vec<_> = inside.map(|entry| entry.unwrap().path()).collect();
    assert!(inside.len() >= 3);
    for path in inside.into_iter().chain(files(&dir)) {
        let expected = if path.is_dir() { 0o2770 } else { 0o660 };
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    assert!(warning(false).unwrap().contains("chmod g-w"));
    chmod(0o2777).unwrap();
    assert!(warning(true).unwrap().contains("chmod o-w"));
}

#[test]
fn nothing_is_opened_through_a_symbolic_link() {
    use std::os::unix::fs::symlink;
    let victim = TempDir::new().unwrap();
    let file = victim.path().join("file");
    fs::write(&file, "untouched").unwrap();
    let target = victim.path().join("folder");
    fs::create_dir(&target).unwrap();
    for name in [
        ".lock",
        "meta.properties.new",
        "bob-0",
        "bob-0/00000000000000000000.log",
        "bob-0/manifest",
    ] {
        let dir = TempDir::new().unwrap();
        let link = dir.path().join(name);
        if let Some((topic, _)) = name.split_once('/') {
            fs::create_dir(dir.path().join(topic)).unwrap();
        }
        symlink(if name == "bob-0" { &target } else { &file }, &link).unwrap();
        let (tx, said) = mpsc::channel();
        let config = Config {
            report: Report::to(move |said| tx.send(said.to_string()).unwrap()),
            ..small()
        };
        let opened = Log::open(dir.path(), "127.0.0.1:9092", &Arc::new(config));
        let refused = match &opened {
            Err(error) => error.to_string(),
            Ok(log) => {
                if let Some(topic) = log.topic("bob") {
                    let appended = topic.append(&mut numbered(0));
                    assert_eq!(appended.is_ok(), !name.ends_with("manifest"));
                } else {
                    assert!(log.create_topic("bob").is_err());
                }
                // Before that, that there is no identity.
                said.try_iter().last().unwrap()
            }
        };
        let last = link.file_name().unwrap().to_str().unwrap();
        assert!(refused.contains(last), "{name}: {refused}");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"untouched", "{name}");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn nothing_is_written_where_a_link_has_replaced_a_topics_folder() {
    let (dir, victim) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let log = open(&dir, &small());
    bob(&log).append(&mut numbered(0)).unwrap();
    let folder = dir.path().join("bob-0");
    fs::remove_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink(victim.path(), &folder).unwrap();
    let appended = bob(&log).append(&mut numbered(1));
    assert_eq!(appended, Err(code::KAFKA_STORAGE_ERROR));
    assert_eq!(fs::read_dir(victim.path()).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_reported_once_for_all_topics() {
    let dir = TempDir::new().unwrap();
    let (tx, said) = mpsc::channel();
    let config = Config {
        max_log_bytes: 10,
        report: Report::to(move |said| tx.send(said.to_string()).unwrap()),
        ..small()
    };
    let log = open(&dir, &config);
    for n in 0..3 {
        let name = format!("topic-{n}");
        log.create_topic(&name).unwrap();
        let appended = log.topic(&name).unwrap().append(&mut numbered(0));
        assert_eq!(appended, Err(code::KAFKA_STORAGE_ERROR));
    }
    let said: Vec<_> = said.try_iter().collect();
    assert_eq!(said.len(), 1, "{said:?}");
}

#[test]
fn a_log_that_is_full_refuses_lines_until_there_is_room_and_keeps_what_it_has() {
    let dir = TempDir::new().unwrap();
    let config = Config {
        max_log_bytes: 60,
        ..Config::default()
    };
    let log = open(&dir, &config);
    for topic in ["bob", "carol"] {
        log.create_topic(topic).unwrap();
    }
    let append = |topic: &str| {
        let mut line = encode(None, None, Some(&[b'x'; 30]));
        log.topic(topic).unwrap().append(&mut line)
    };
    assert_eq!(append("bob"), Ok(0));
    assert_eq!(append("bob"), Err(code::KAFKA_STORAGE_ERROR));
    assert_eq!(append("carol"), Err(code::KAFKA_STORAGE_ERROR));
    std::fs::remove_dir_all(dir.path().join("bob-0")).unwrap();
    wait_until("it stays full", || append("carol") == Ok(0));
    let mut kept = Vec::new();
    let carol = log.topic("carol").unwrap();
    assert_eq!(carol.read(0, |all| all, &mut kept), Ok(1));
    assert!(!kept.is_empty());
}

#[test]
fn an_identity_that_is_lost_costs_no_line_and_is_reported_once() {
    let dir = TempDir::new().unwrap();
    let (messages, _) = four_messages(&dir);
    let file = dir.path().join("meta.properties");
    let damages: [&[u8]; 4] = [b"", b"log.id=x\n", b"log.id=5000000000\n", &[0xff; 20]];
    for damage in [None].into_iter().chain(damages.map(Some)) {
        match damage {
            None => fs::remove_file(&file).unwrap(),
            Some(bytes) => fs::write(&file, bytes).unwrap(),
        }
        let (tx, rx) = mpsc::channel();
        let config = Config {
            report: Report::to(move |said| tx.send(said.to_string()).unwrap()),
            ..small()
        };
        for _ in 0..2 {
            let log = open(&dir, &config);
            assert_eq!(identity::stored(dir.path()), Some(log.id));
            assert_eq!(read_from(&bob(&log), 0, 1000), without_offset(&messages));
        }
        let said: Vec<_> = rx.try_iter().collect();
        assert_eq!(said.len(), 1, "{damage:?}: {said:?}");
        assert!(said[0].contains("identity"), "{said:?}");
    }
}

#[test]
fn an_identity_that_cannot_be_read_is_not_replaced() {
    let (dir, victim) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let config = Config::default();
    drop(open(&dir, &config));
    let [file, moved] = [&dir, &victim].map(|it| it.path().join("meta.properties"));
    std::fs::rename(&file, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &file).unwrap();
    assert!(Log::open(dir.path(), "", &Arc::new(config)).is_err());
    assert!(file.is_symlink());
}
