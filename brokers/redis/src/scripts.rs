//! The steps that have to be one: each script runs on the server without anything in between.

use std::sync::LazyLock;

use redis::Script;

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {
        $($(#[$doc])* pub(crate) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!(include_str!("lua/common.lua"), include_str!($file))));)*
    };
}

scripts! {
    PUBLISH = "lua/publish.lua";
    /// Promotes what is due, then takes what was returned, then what is new.
    TAKE = "lua/take.lua";
    KEEP = "lua/keep.lua";
    SETTLE = "lua/settle.lua";
    DEPTHS = "lua/depths.lua";
    REQUEUE = "lua/requeue.lua";
    PRESENCE = "lua/presence.lua";
    NODES = "lua/nodes.lua";
    LIST = "lua/list.lua";
    STREAM_LEAVE = "lua/stream_leave.lua";
}
