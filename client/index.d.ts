/// <reference types="node" />
import { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'http';

/** The run that a call is of. */
export interface Run {
  /** The same for all attempts: `<namespace>/<cluster>/<name>@<tick or revision>`. */
  key: string;
  /** `schedule` or `startup`. */
  kind: string;
  /** Name of the schedule or task. */
  name: string;
  /** `<namespace>/<cluster>` */
  cluster: string;
  /** When the run fell due; a startup task has none. */
  tick?: Date;
  /** From 1. */
  attempt: number;
  /** When the agent gives up. */
  deadline: Date;
  /** Rises with each leader; a task of scope `Instance` has none. */
  token?: number;
  /** What the token is for. */
  scope: string;
  /** As W3C Trace Context has it. */
  traceparent?: string;
  /** Byte by byte. */
  body: Buffer;
  /** The body, if it is JSON. */
  data?: any;
}

export interface Answer {
  status: number;
  /** Names in lower case. */
  headers: { [name: string]: string };
  body: string;
}

/** A request that is answered already, or a run that the caller has now, and ends by `done` or `failed`. */
export type Entry =
  | { answer: Answer; run?: undefined }
  | {
      answer?: undefined;
      run: Run;
      /** It is done: `answer` is given to whoever asks for it again. */
      done(answer: Answer): Promise<void>;
      /** It has failed, and the next attempt may run it. `answer` is given to an agent that asks what became of this one. */
      failed(answer?: Answer): Promise<void>;
    };

export interface Claim {
  scope: string;
  token?: number;
  key: string;
  attempt: number;
  /** For so long from now scope and answer are to be remembered, in milliseconds. */
  keepMs: number;
}

export type Claimed =
  | {
      state: 'claimed';
      /** Without an answer nothing is remembered; of what has failed, only `look` tells. */
      finish(answer: Answer | undefined, keepMs: number, failed?: boolean): Promise<void>;
    }
  | { state: 'done'; answer: Answer }
  | { state: 'running' }
  | { state: 'stale'; highest: number }
  | { state: 'full' };

export type Known =
  | { state: 'done'; answer: Answer }
  | { state: 'running' }
  | { state: 'stale'; highest: number }
  | { state: 'unknown' };

/** What remembers tokens and runs. */
export interface Store {
  /** Compares the token and takes the key, in one step that no other call comes between. */
  claim(claim: Claim): Promise<Claimed>;
  /** What is known of a run, which does not begin by that. Without it nothing is. */
  look?(call: Claim): Promise<Known>;
}

export interface GuardOptions {
  /** Default `/etc/cabloy/signing/key`; `false` takes calls that are not signed. */
  keyFile?: string | false;
  /** How far the time of a signature may be from now, either way. Default 300000. */
  toleranceMs?: number;
  /** For how long after its deadline a run is remembered. Default 3600000. */
  marginMs?: number;
  /** The longest body, in bytes. Default 1048576. */
  bodyLimit?: number;
  /** Default `createMemoryStore()`. */
  store?: Store;
  /** Is given what went wrong in the app: its handler, its store, its key file. Default: `console.error`. */
  onError?: (error: unknown) => void;
}

/** What `koa` needs of a context. */
export interface KoaContext {
  req: IncomingMessage;
  request: any;
  response: { get(name: string): any };
  state: any;
  status: number;
  body: any;
  set(name: string, value: string): void;
}

type Headers = IncomingHttpHeaders | { get(name: string): string | null | undefined };

export interface Guard {
  /** For node:http and Express. What `fn` returns is the answer: JSON, nothing, or `accepted(…)`. To fail, throw. */
  handler(fn: (run: Run) => unknown): (req: IncomingMessage, res: ServerResponse) => Promise<void>;
  /** For the path of `accepted(…)`; `accepted(…)` again while the run goes on. */
  poll(fn: (req: IncomingMessage) => unknown): (req: IncomingMessage, res: ServerResponse) => Promise<void>;
  /** For koa, egg and CabloyJS; the run is `ctx.state.agentRun`. */
  koa(): (ctx: KoaContext, next: () => Promise<unknown>) => Promise<void>;
  /**
   * Does a run part by part, such as for each tenant, and gives the answer for the whole: 200 if all are done, else one
   * that names those that failed. A part that is done is not begun again by another attempt.
   */
  parts(
    run: Run,
    names: string[],
    fn: (name: string) => unknown,
    options?: { /** How many at the same time. Default 1. */ concurrency?: number },
  ): Promise<Answer>;
  /** For anything else. Never rejects. */
  enter(headers: Headers, body: Buffer): Promise<Entry>;
  /** Verifies the signature alone: what to refuse the request with, or nothing. */
  authenticate(headers: Headers, body: Buffer): Promise<Answer | undefined>;
}

/** Throws a `TypeError` for options that cannot be. */
export function createGuard(options?: GuardOptions): Guard;

/** For an app that is one process. */
export function createMemoryStore(options?: { /** Default 10000. */ maxEntries?: number }): Store;

export interface RedisStoreOptions {
  /** A client of ioredis. */
  client: { eval(script: string, keys: number, ...args: string[]): Promise<any> };
  /** What all keys begin with. Default `{cabloy-agent}:`. */
  prefix?: string;
  /** How long a process that died keeps its run from the others. Default 30000. */
  leaseMs?: number;
}

/** For an app that is several processes. */
export function createRedisStore(options: RedisStoreOptions): Store;

/** What a handler returns for work that goes on; the agent asks at that path until it is over. */
export function accepted(location: string): unknown;

/** What a handler throws to have a status of its own. */
export class Failure extends Error {
  constructor(status: number, message: string, retryAfterS?: number);
  status: number;
  expose: true;
  headers: { [name: string]: string };
}
