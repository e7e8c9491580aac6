/** Payloads of the events that a topic sends, by event. */
export type Events = Record<string, any>;

/** Messages and replies of the events that may be pushed to a topic, by event. */
export type Pushes = Record<string, { message: any; reply: any }>;

/** One topic; `tangram types` writes one for each declared channel into the interface `Channels`. */
export interface Topic {
  events: object;
  pushes: object;
}

/** A topic without declarations: every event and every payload is allowed. */
export interface AnyTopic {
  events: Events;
  pushes: Pushes;
}

/** Topics without declarations. */
export type AnyTopics = Record<string, AnyTopic>;

/** The topics of a declared channel: `flights:{area}` stands for all that begin with `flights:`. */
export type Pattern<Key> = Key extends `${infer Before}{${string}}${infer After}`
  ? `${Before}${string}${Pattern<After>}`
  : Key;

/** The names of all topics. */
export type TopicName<Topics> = { [Key in keyof Topics]: Pattern<Key> }[keyof Topics] & string;

/** The entry of a topic; a name without parameters comes first. */
export type TopicOf<Topics, Name extends string> = Extract<
  Name extends keyof Topics
    ? Topics[Name]
    : { [Key in keyof Topics]: Name extends Pattern<Key> ? Topics[Key] : never }[keyof Topics],
  Topic
>;

/** The message of a push. */
export type MessageOf<Push> = Push extends { message: infer Message } ? Message : never;

/** The reply of a push. */
export type ReplyOf<Push> = Push extends { reply: infer Reply } ? Reply : never;

/** Options of a push: milliseconds to wait for the reply. */
export interface PushOptions {
  timeout?: number;
}

/** A value that changes. */
export declare class Observable<T> {
  readonly value: T;
  /** Call back with the value, now and after each change; the result ends it. It is the contract of a Svelte store. */
  subscribe(listener: (value: T) => void): () => void;
}

/** An error reply, or none in time. */
export declare class ChannelError extends Error {
  /** The server's word for it, for example "unauthorized" or "timeout". */
  readonly reason: string;
  /** The whole reply; a declared channel lists the faults of a payload in it. */
  readonly reply: any;
}

/** A socket with the interface of npm's "phoenix". */
export type SocketClass = new (endPoint: string, options?: any) => any;

export interface ConnectOptions {
  /** The address of the server. Unset: the origin of the page. */
  url?: string;
  /** The id that tokens are asked for. Unset: the server chooses one with the first token. */
  id?: string | null;
  /** Parameters of the connection's address. */
  params?: Record<string, string> | (() => Record<string, string>);
  /** Milliseconds to wait for a token or a reply; 10,000 where unset. */
  timeout?: number;
  /** A WebSocket class, for Node before version 22. */
  transport?: any;
  /** Another function in place of the global `fetch`. */
  fetch?: typeof globalThis.fetch;
  /** Another socket in place of that of npm's "phoenix". */
  Socket?: SocketClass;
}

export interface ConnectionState {
  name: "connecting" | "connected" | "reconnecting" | "closed";
  /** The close code of the WebSocket. */
  code?: number;
  /** Why the connection was lost, for a person. */
  reason?: string;
}

export interface ChannelState {
  name: "left" | "joining" | "joined" | "waiting" | "refused";
  /** Why the topic is not joined. */
  reason?: string;
  /** The reply of the join. */
  reply?: JoinReply;
}

export interface JoinReply {
  id: string;
  position?: string;
  recovered?: boolean;
  reason?: "epoch" | "too_old" | "too_much";
}

export interface ChannelOptions {
  /** Whether to get the messages that were missed; the topic needs a history. */
  recover?: boolean;
  /** Further parameters of the join. */
  params?: Record<string, unknown>;
}

/** Metadata of one connection of a member. */
export interface Meta {
  phx_ref: string;
  [key: string]: unknown;
}

export declare class Client<Topics extends object = AnyTopics> {
  constructor(options: ConnectOptions & { Socket: SocketClass; url: string });
  readonly state: Observable<ConnectionState>;
  /** The id of this client, once a token named it. */
  readonly id: string | null;
  connect(): this;
  close(): void;
  channel<Name extends TopicName<Topics>>(topic: Name, options?: ChannelOptions): Channel<TopicOf<Topics, Name>>;
}

export declare class Channel<T extends Topic = AnyTopic> {
  readonly topic: string;
  readonly state: Observable<ChannelState>;
  /** The members by id, each with the metadata of its connections. */
  readonly members: Observable<Map<string, Meta[]>>;
  /** The number of members, also of topics that have so many that the server sends only their number. */
  readonly count: Observable<number>;
  /** The position behind the newest message. */
  readonly position: string;
  /** Whether the last join missed nothing; null without `recover`. */
  readonly recovered: boolean | null;
  on<Event extends keyof T["events"] & string>(event: Event, handler: (payload: T["events"][Event]) => void): () => void;
  onMissed(handler: (missed: { reason: string }) => void): () => void;
  join(): Promise<this>;
  push<Event extends keyof T["pushes"] & string>(
    event: Event,
    // The message may be left out if all of its fields may.
    ...rest: {} extends MessageOf<T["pushes"][Event]>
      ? [message?: MessageOf<T["pushes"][Event]>, options?: PushOptions]
      : [message: MessageOf<T["pushes"][Event]>, options?: PushOptions]
  ): Promise<ReplyOf<T["pushes"][Event]>>;
  leave(): void;
}

/** Connect to the server that the page came from, or to `url`. */
export declare function connect<Topics extends object = AnyTopics>(options?: ConnectOptions): Client<Topics>;
