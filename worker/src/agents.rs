//! Who answers: each configured agent with its model and its tools, made once at start.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use longhaul_shared::{
    config::{AgentConfig, Config, ProviderConfig, ProviderKind, ToolConfig},
    domain::{asked::ModelName, tool::ToolSpec},
    net_guard::{BadAllow, ClientOptions, GuardedClient, NetGuard},
};

use crate::{
    provider::{
        Model, ModelError, ModelRequest, ModelStream,
        openai::{OpenAi, OpenAiOptions},
        scripted::{BadScript, Scripted},
    },
    tools::{
        BadTool, Registry,
        clock::Clock,
        http::{BadHeader, HttpTool, HttpToolOptions},
    },
};

/// One agent, ready to work.
#[derive(Clone)]
pub struct Agent {
    pub name: String,
    pub model: Arc<dyn Model>,
    pub model_name: String,
    pub instructions: String,
    pub temperature: Option<f32>,
    pub tools: Registry,
}

/// All agents of this worker, and the providers that they may be lent. Cheap to clone.
#[derive(Clone, Default)]
pub struct Agents {
    agents: Arc<HashMap<String, Arc<Agent>>>,
    providers: Arc<HashMap<String, Arc<dyn Model>>>,
}

/// Why an agent cannot work. The configuration has been checked, so this is about what it points at.
#[derive(Debug, thiserror::Error)]
pub enum BadAgent {
    #[error("provider {provider}: {source}")]
    Script { provider: String, source: BadScript },
    #[error("provider {0} has no base URL")]
    NoBaseUrl(String),
    #[error("agent {agent} names a provider that is not configured: {provider}")]
    NoProvider { agent: String, provider: String },
    #[error("tool {tool}: {source}")]
    Header { tool: String, source: BadHeader },
    #[error("tool {tool}: `{method}` is not an HTTP method")]
    Method { tool: String, method: String },
    #[error(transparent)]
    Tool(#[from] BadTool),
    #[error(transparent)]
    Allow(#[from] BadAllow),
    #[error("no HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

impl FromIterator<Agent> for Agents {
    fn from_iter<I: IntoIterator<Item = Agent>>(agents: I) -> Self {
        let named = agents.into_iter().map(|agent| (agent.name.clone(), Arc::new(agent)));
        Self { agents: Arc::new(named.collect()), providers: Arc::default() }
    }
}

impl Agents {
    pub fn from_config(config: &Config) -> Result<Self, BadAgent> {
        let allow: Vec<String> = config.net.allow.iter().map(ToString::to_string).collect();
        let client = NetGuard::new(&allow)?.client(&ClientOptions::default())?;
        let models: HashMap<String, Arc<dyn Model>> = config
            .providers
            .iter()
            .map(|(name, provider)| Ok((name.clone(), model(name, provider, config, &client)?)))
            .collect::<Result<_, BadAgent>>()?;
        let mut tools = Registry::new();
        tools.add(Arc::new(Clock::new(Arc::new(|| std::time::SystemTime::now().into()))))?;
        for (name, tool) in &config.tools {
            tools.add(Arc::new(http_tool(name, tool, &client)?))?;
        }
        let agent = |(name, agent): (&String, &AgentConfig)| {
            let model = models.get(agent.provider.as_str()).ok_or_else(|| BadAgent::NoProvider {
                agent: name.clone(),
                provider: agent.provider.clone(),
            })?;
            Ok(Agent {
                name: name.clone(),
                model: Arc::clone(model),
                model_name: agent.model.clone(),
                instructions: agent.instructions.clone(),
                temperature: agent.temperature.map(|temperature| temperature as f32),
                tools: tools.only(agent.tools.iter().map(String::as_str))?,
            })
        };
        let agents: Self = config.agents.iter().map(agent).collect::<Result<_, BadAgent>>()?;
        Ok(Self { providers: Arc::new(models), ..agents })
    }

    /// The same agent on another model.
    pub fn with_model(&self, agent: &Agent, model: &ModelName) -> Arc<Agent> {
        let provider = self.providers.get(&model.provider).cloned();
        Arc::new(Agent {
            model: provider.unwrap_or_else(|| Arc::new(Missing("the run's provider"))),
            model_name: model.name.clone(),
            ..agent.clone()
        })
    }

    /// The agent of that name. One that this worker does not have says so when it is asked.
    pub fn get(&self, name: &str) -> Arc<Agent> {
        self.agents.get(name).cloned().unwrap_or_else(|| {
            Arc::new(Agent {
                name: name.to_owned(),
                model: Arc::new(Missing("the run's agent")),
                model_name: String::new(),
                instructions: String::new(),
                temperature: None,
                tools: Registry::new(),
            })
        })
    }
}

#[cfg(test)]
impl Agents {
    pub(crate) fn of(agents: impl IntoIterator<Item = Agent>) -> Self {
        agents.into_iter().collect()
    }
}

/// The model of something that is not configured here.
struct Missing(&'static str);

#[async_trait]
impl Model for Missing {
    async fn stream(&self, _: ModelRequest) -> Result<ModelStream, ModelError> {
        Err(ModelError::NotConfigured(format!("{} is not configured at this worker", self.0)))
    }
}

fn model(
    name: &str,
    provider: &ProviderConfig,
    config: &Config,
    client: &GuardedClient,
) -> Result<Arc<dyn Model>, BadAgent> {
    match provider.kind {
        ProviderKind::Openai => {
            let base_url = provider.base_url.as_ref().ok_or_else(|| BadAgent::NoBaseUrl(name.to_owned()))?;
            let api_key = provider.api_key.as_ref().map(|key| key.expose().to_owned());
            let limits = &config.limits;
            Ok(Arc::new(OpenAi::new(OpenAiOptions {
                first_byte_timeout: limits.first_byte,
                silence_timeout: limits.provider_silence,
                max_output_bytes: limits.max_output_bytes.as_usize(),
                max_retries: provider.max_retries,
                retry_after_cap: provider.max_retry_delay,
                ..OpenAiOptions::new((**base_url).clone(), api_key, client.clone())
            })))
        }
        ProviderKind::Scripted => {
            let scripted = match &provider.script {
                Some(path) => Scripted::from_file(path)
                    .map_err(|source| BadAgent::Script { provider: name.to_owned(), source })?,
                None => Scripted::demo(),
            };
            Ok(Arc::new(scripted))
        }
    }
}

fn http_tool(name: &str, tool: &ToolConfig, client: &GuardedClient) -> Result<HttpTool, BadAgent> {
    let spec = ToolSpec {
        name: name.to_owned(),
        description: tool.description.clone(),
        parameters: tool.parameters.clone(),
        effect: tool.effect,
    };
    let method = tool
        .method
        .parse()
        .map_err(|_| BadAgent::Method { tool: name.to_owned(), method: tool.method.clone() })?;
    let headers =
        tool.headers.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect();
    HttpTool::new(HttpToolOptions {
        method,
        headers,
        timeout: tool.timeout,
        max_bytes: tool.max_bytes.as_usize(),
        reconcile_url: tool.reconcile_url.as_ref().map(|url| (**url).clone()),
        ..HttpToolOptions::new(spec, (*tool.url).clone(), client.clone())
    })
    .map_err(|source| BadAgent::Header { tool: name.to_owned(), source })
}
