//! Calls to where users and models may send us: nowhere into the operator's own network, unless the configuration
//! allows it.
//!
//! | file | owns |
//! | --- | --- |
//! | `guard.rs` | which URLs and addresses may be called |
//! | `caller.rs` | the clients that call them, and words for what went wrong |

mod caller;
pub mod guard;

pub use caller::{CallError, Caller};
