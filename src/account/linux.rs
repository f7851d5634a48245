//! Asks Linux for one socket, over netlink.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroI32;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use nix::libc::ENOENT;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::unistd::Uid;

use super::Account;

/// How many bytes an answer can have. One about a socket has about a hundred.
const MAX_ANSWER: usize = 8192;

/// A cookie of no certain socket.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// The account of the connected socket at `local`, whose other end is at `remote`.
pub(super) fn of_connected(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Account>> {
    let found = find(local, remote)?;
    // If no such socket is connected, Linux answers with one that listens at `local`.
    Ok(found.filter(|it| it.state != TCP_LISTEN).and_then(account))
}

/// The account of the socket that takes connections to `address`.
pub(super) fn of_listener(address: SocketAddr) -> io::Result<Option<Account>> {
    let anywhere = match address.is_ipv4() {
        true => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        false => Ipv6Addr::UNSPECIFIED.into(),
    };
    let found = find(address, SocketAddr::new(anywhere, 0))?;
    Ok(found.filter(|it| it.state == TCP_LISTEN).and_then(account))
}

/// The account of a socket that some process has open. One that is closed has no inode, and may be shown as one of
/// root.
fn account(socket: InetResponseHeader) -> Option<Account> {
    (socket.inode != 0).then_some(Account(Uid::from_raw(socket.uid)))
}

fn find(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<InetResponseHeader>> {
    let (source, destination) = (local.ip().to_canonical(), remote.ip().to_canonical());
    let request = InetRequest {
        family: if source.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: source,
            destination_address: destination,
            interface_id: 0,
            cookie: ANY_COOKIE,
        },
    };
    let mut request = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let answer = ask(&bytes)?;
    let invalid = |why| io::Error::new(ErrorKind::InvalidData, why);
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer);
    match answer.map_err(|why| invalid(why.to_string()))?.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
            Ok(Some(found.header))
        }
        NetlinkPayload::Error(error) if error.code == NonZeroI32::new(-ENOENT) => Ok(None),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(invalid("an unexpected answer".to_string())),
    }
}

/// Sends one request to the kernel, and returns its answer.
fn ask(request: &[u8]) -> io::Result<Vec<u8>> {
    let socket = socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    socket::send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    let mut answer = vec![0; MAX_ANSWER];
    let size = socket::recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(size);
    Ok(answer)
}
