//! How a program starts where its address space is limited.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::{env, os::unix::process::CommandExt, process::Command};

#[cfg(all(target_os = "linux", target_env = "gnu"))]
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// Runs the program again in this process, with one arena of the allocator, if its address space is limited
/// (`ulimit -v`) and `MALLOC_ARENA_MAX` is not set.
///
/// Each thread that allocates gets an arena from glibc, up to 8 for each processor, with 64 MiB of address space.
/// Under a limit, they leave too little for all else, and the first allocation that fails ends the program. glibc reads
/// the variable only when it starts, and only `unsafe` code could set the number later.
pub fn with_few_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const ARENAS: &str = "MALLOC_ARENA_MAX";
        let is_limited =
            getrlimit(Resource::RLIMIT_AS).is_ok_and(|(soft, _)| soft != RLIM_INFINITY);
        let mut arguments = env::args_os();
        if is_limited
            && env::var_os(ARENAS).is_none()
            && let (Ok(path), Some(name)) = (env::current_exe(), arguments.next())
        {
            // Returns only if it fails: then the program goes on as it is.
            let _ = Command::new(path)
                .arg0(name)
                .args(arguments)
                .env(ARENAS, "1")
                .exec();
        }
    }
}
