//! From the configuration's tools to those of an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;

use crate::agent::providers::ToolCard;
use crate::agent::tools::http::{HttpRequest, HttpTool};
use crate::agent::tools::mcp::{McpOptions, McpServer, Program, Transport, tools_of};
use crate::agent::tools::{Declared, Policy, Toolbox};
use crate::config::{self, Config, ToolKind};
use crate::net::guard::Guard;

/// All tools that the configuration declares. Their connections are shared by all agents of the node.
pub struct Tools {
    declared: BTreeMap<String, Declared>,
    servers: BTreeMap<String, Arc<McpServer>>,
}

impl Tools {
    /// Reads what is declared; connects nothing.
    ///
    /// # Errors
    /// A declaration makes no sense.
    pub fn new(config: &Config) -> Result<Self, String> {
        let declared = config.tools.iter().map(|(name, tool)| Ok((name.clone(), declare(name, tool)?)));
        let servers = config.mcp.iter().map(|(name, mcp)| Ok((name.clone(), server(name, mcp)?)));
        Ok(Self {
            declared: declared.collect::<Result<_, String>>()?,
            servers: servers.collect::<Result<_, String>>()?,
        })
    }

    /// The MCP servers by name.
    #[must_use]
    pub fn servers(&self) -> &BTreeMap<String, Arc<McpServer>> {
        &self.servers
    }
}

/// The tools that an agent's list of `names` stands for, for its model. Servers are connected when they are first asked.
///
/// # Errors
/// A name is declared nowhere.
pub fn toolbox(tools: &Tools, names: &[String]) -> Result<Arc<dyn Toolbox>, String> {
    let mut chosen = Chosen { declared: Vec::new(), servers: Vec::new() };
    // Named twice is meant once.
    for name in names.iter().collect::<BTreeSet<_>>() {
        match (tools.declared.get(name), tools.servers.get(name)) {
            (Some(declared), _) => chosen.declared.push(declared.clone()),
            (None, Some(server)) => chosen.servers.push(Arc::clone(server)),
            (None, None) => return Err(format!("there is no tool {name}")),
        }
    }
    Ok(Arc::new(chosen))
}

/// What one agent may use.
struct Chosen {
    declared: Vec<Declared>,
    servers: Vec<Arc<McpServer>>,
}

#[async_trait]
impl Toolbox for Chosen {
    async fn tools(&self) -> Result<Vec<Declared>, String> {
        let mut tools = self.declared.clone();
        // What the operator has declared goes before what a server calls the same.
        let taken = tools.iter().map(|declared| declared.tool.card().name).collect();
        tools.extend(tools_of(&self.servers, taken).await?);
        Ok(tools)
    }
}

fn server(name: &str, mcp: &config::Mcp) -> Result<Arc<McpServer>, String> {
    let transport = match (&mcp.command[..], &mcp.url) {
        ([_, ..], None) => Transport::Program(Program { command: mcp.command.clone(), env: mcp.env.clone() }),
        ([], Some(url)) => Transport::Http {
            url: url.clone(),
            headers: mcp.headers.clone(),
            guard: Guard::new(&format!("mcp.{name}.allow"), mcp.allow.clone()),
        },
        ([], None) | ([_, ..], Some(_)) => return Err(format!("mcp.{name}: one of command and url has to be set")),
    };
    Ok(McpServer::new(McpOptions {
        name: name.to_owned(),
        transport,
        offered: mcp.tools.clone(),
        needs_approval: mcp.needs_approval.clone(),
        approved: mcp.approved.clone(),
        policy: Policy {
            timeout: mcp.timeout,
            retries: mcp.retries,
            needs_approval: false,
            max_output: mcp.max_output,
            cut_off: mcp.on_cut_off,
        },
    }))
}

fn declare(name: &str, tool: &config::Tool) -> Result<Declared, String> {
    let of_tool = |problem: String| format!("tools.{name}: {problem}");
    let policy = Policy {
        timeout: tool.timeout,
        retries: tool.retries,
        needs_approval: tool.needs_approval,
        max_output: tool.max_output,
        cut_off: tool.on_cut_off,
    };
    let card = ToolCard {
        name: name.to_owned(),
        description: tool.description.clone(),
        parameters: tool.parameters.clone().into(),
    };
    match tool.kind {
        ToolKind::Http => {
            let url = tool.url.as_deref().ok_or_else(|| of_tool("url has to be set".to_owned()))?;
            let request =
                HttpRequest::new(tool.method.as_str(), url, &tool.headers, tool.body.as_ref(), &tool.parameters)
                    .map_err(|error| of_tool(error.to_string()))?;
            let guard = Guard::new(&format!("tools.{name}.allow"), tool.allow.clone());
            Declared::new(Arc::new(HttpTool::new(card, request, guard, tool.max_output)), policy)
        }
    }
}
