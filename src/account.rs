//! Which account a TCP socket of this machine belongs to, and which accounts are trusted with it.
//!
//! Linux alone tells that: it looks one socket up as it does for an incoming packet ([sock_diag(7)]), whichever of
//! `/proc/net/tcp` and `tcp6` lists it. Elsewhere every socket counts as one of this account.
//!
//! [sock_diag(7)]: https://man7.org/linux/man-pages/man7/sock_diag.7.html

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};

use nix::unistd::{Uid, User};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as platform;

/// Where this can't be seen.
#[cfg(not(target_os = "linux"))]
mod platform {
    use super::*;

    pub(super) fn of_connected(_: SocketAddr, _: SocketAddr) -> io::Result<Option<Account>> {
        Ok(Some(Account::own()))
    }

    pub(super) fn of_listener(_: SocketAddr) -> io::Result<Option<Account>> {
        Ok(Some(Account::own()))
    }
}

/// An account of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account(Uid);

impl Account {
    /// The account that this process runs as.
    pub fn own() -> Account {
        Account(Uid::effective())
    }

    /// Whether it is this process's account, or root, who can do everything anyway.
    pub fn is_trusted(self) -> bool {
        self == Account::own() || self.0.is_root()
    }
}

impl fmt::Display for Account {
    /// Its name, or its number if it has none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match User::from_uid(self.0) {
            Ok(Some(user)) => f.write_str(&user.name),
            _ => write!(f, "{}", self.0),
        }
    }
}

/// The account that has the other end of a connection of this machine; `None` if that end is closed.
pub fn of_peer(stream: &TcpStream) -> io::Result<Option<Account>> {
    let (peer, own) = (stream.peer_addr()?, stream.local_addr()?);
    let account = platform::of_connected(peer, own)?;
    // Fails if the connection was reset: the peer's address may be another connection's since.
    stream.peer_addr()?;
    Ok(account)
}

/// The account that listens at an address of this machine; `None` if nobody does.
pub fn of_listener(address: SocketAddr) -> io::Result<Option<Account>> {
    platform::of_listener(address)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    fn connected(listener: &TcpListener, server: &str) -> (TcpStream, TcpStream) {
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((server, port)).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn this_account_and_root_are_trusted_and_no_other() {
        let own = Uid::effective();
        let other = Uid::from_raw(own.as_raw() ^ 0x7fff_0000);
        assert!(Account(own).is_trusted());
        assert!(Account(Uid::from_raw(0)).is_trusted());
        assert!(!Account(other).is_trusted());
    }

    #[test]
    fn an_account_is_named_and_one_without_a_name_is_numbered() {
        assert_eq!(Account(Uid::from_raw(0)).to_string(), "root");
        assert_eq!(
            Account(Uid::from_raw(0x7fff_1234)).to_string(),
            "2147422772"
        );
    }

    #[test]
    fn both_ends_of_a_connection_are_seen_over_ipv4_and_ipv6() {
        for (listening, server) in [
            ("127.0.0.1:0", "127.0.0.1"),
            // An IPv6 socket that is connected over IPv4.
            ("127.0.0.1:0", "::ffff:127.0.0.1"),
            ("0.0.0.0:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("[::]:0", "::1"),
            ("[::]:0", "127.0.0.1"),
        ] {
            // Not every machine has IPv6.
            let Ok(listener) = TcpListener::bind(listening) else {
                continue;
            };
            let (client, served) = connected(&listener, server);
            let own = Some(Account::own());
            assert_eq!(of_peer(&served).unwrap(), own, "{listening} {server}");
            let address = client.peer_addr().unwrap();
            assert_eq!(of_listener(address).unwrap(), own, "{listening} {server}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn nobody_listens_at_a_free_port_nor_at_one_that_was_only_connected_from() {
        // Another program may take a port that is free again.
        let is_nobody = (0..100).any(|_| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let (client, _served) = connected(&listener, "127.0.0.1");
            drop(listener);
            let ports = [client.local_addr().unwrap(), address];
            ports.iter().all(|it| of_listener(*it).unwrap().is_none())
        });
        assert!(is_nobody);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_client_that_writes_and_closes_at_once_is_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut client, served) = connected(&listener, "127.0.0.1");
        client.write_all(b"request").unwrap();
        drop(client);
        assert_eq!(of_peer(&served).unwrap(), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_listener_at_the_address_of_a_client_that_has_gone_is_not_taken_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        loop {
            let (client, served) = connected(&listener, "127.0.0.1");
            let address = client.local_addr().unwrap();
            // Without a wait for the last packets, its port is free at once.
            let linger = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::Linger, &linger)
                .unwrap();
            drop(client);
            // Another program may have taken it.
            if let Ok(_listener) = TcpListener::bind(address) {
                let server = listener.local_addr().unwrap();
                assert_eq!(platform::of_connected(address, server).unwrap(), None);
                of_peer(&served).unwrap_err();
                return;
            }
        }
    }
}
