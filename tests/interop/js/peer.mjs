// A js-libp2p peer (TCP, Noise, yamux, identify, ping, gossipsub) that speaks the control protocol of ../control.py.
// Node 20 has no Promise.withResolvers, and libp2p needs it at import: define it first, import after.
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'

Promise.withResolvers ??= function () {
  const deferred = {}
  deferred.promise = new this((resolve, reject) => Object.assign(deferred, { resolve, reject }))
  return deferred
}

const { createLibp2p } = await import('libp2p')
const { tcp } = await import('@libp2p/tcp')
const { noise } = await import('@libp2p/noise')
const { yamux } = await import('@libp2p/yamux')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { gossipsub } = await import('@libp2p/gossipsub')
const { mdns } = await import('@libp2p/mdns')
const { preSharedKey } = await import('@libp2p/pnet')
const { multiaddr } = await import('@multiformats/multiaddr')

const { values: flags } = parseArgs({
  options: {
    'do-px': { type: 'boolean', default: false },
    'accept-px-threshold': { type: 'string' },
    d: { type: 'string' },
    mdns: { type: 'string' },
    'no-flood-publish': { type: 'boolean', default: false },
    'network-key': { type: 'string' }
  }
})

// The bounds follow D in the proportions of the defaults: D 6, Dlo 4, Dhi 12, Dscore 4, Dout 2.
function degrees (d) {
  const dlo = Math.max(1, Math.floor(d * 2 / 3))
  return { D: d, Dlo: dlo, Dhi: d * 2, Dscore: dlo, Dout: Math.max(0, Math.min(Math.floor(d / 3), dlo - 1)) }
}

// libp2p's own event `peer:discovery` tells only of peers that it does not know already.
const discovered = new Set()
function watchedMdns (components) {
  const discovery = mdns()(components)
  discovery.addEventListener('peer', ({ detail: { id, multiaddrs } }) => {
    for (const addr of multiaddrs) discovered.add(`${addr}/p2p/${id}`)
  })
  return discovery
}

const node = await createLibp2p({
  addresses: { listen: [`/ip4/${flags.mdns ?? '127.0.0.1'}/tcp/0`] },
  peerDiscovery: flags.mdns === undefined ? [] : [watchedMdns],
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  ...(flags['network-key'] === undefined
    ? {}
    : {
        connectionProtector: preSharedKey({
          psk: Buffer.from(`/key/swarm/psk/1.0.0/\n/base16/\n${flags['network-key']}\n`)
        })
      }),
  connectionManager: { inboundConnectionThreshold: 10000 }, // the default is 5 per second and host
  services: {
    identify: identify(),
    ping: ping(),
    pubsub: gossipsub({
      doPX: flags['do-px'],
      floodPublish: !flags['no-flood-publish'],
      scoreParams: { IPColocationFactorWeight: 0 }, // all peers of a test share 127.0.0.1
      ...(flags['accept-px-threshold'] === undefined
        ? {}
        : { scoreThresholds: { acceptPXThreshold: Number(flags['accept-px-threshold']) } }),
      ...(flags.d === undefined ? {} : degrees(Number(flags.d)))
    })
  }
})
const pubsub = node.services.pubsub

function emit (value) {
  process.stdout.write(JSON.stringify(value) + '\n')
}

pubsub.addEventListener('gossipsub:message', ({ detail: { msg, propagationSource } }) => {
  const receivedAt = (performance.timeOrigin + performance.now()) / 1000
  emit({
    event: 'message',
    topic: msg.topic,
    from: msg.from?.toString() ?? null,
    seqno: msg.sequenceNumber?.toString(16).padStart(16, '0') ?? null,
    data_b64: Buffer.from(msg.data).toString('base64'),
    received_at: receivedAt,
    via: propagationSource.toString()
  })
})

const ECHO_STREAMS = { maxInboundStreams: 1000, maxOutboundStreams: 1000 } // by default 32 and 64 of one protocol
const ECHO_CHUNK_BYTES = 65536

async function say (stream, data) {
  for (let offset = 0; offset < data.length; offset += ECHO_CHUNK_BYTES) {
    if (!stream.send(data.subarray(offset, offset + ECHO_CHUNK_BYTES))) await stream.onDrain()
  }
}

async function isEchoed (stream, incoming, data) {
  const saying = say(stream, data)
  const parts = []
  for (let missing = data.length; missing > 0;) {
    const { value, done } = await incoming.next()
    if (done) return false
    parts.push(value.subarray())
    missing -= value.byteLength
  }
  await saying
  return Buffer.concat(parts).equals(data)
}

const ids = (peers) => ({ peers: peers.map(String) })
const commands = {
  dial: async ({ addr }) => {
    await node.dial(multiaddr(addr))
    return {}
  },
  subscribe: ({ topic }) => {
    pubsub.subscribe(topic)
    return {}
  },
  publish: async ({ topic, data_b64: data }) => {
    await pubsub.publish(topic, Buffer.from(data, 'base64'))
    return {}
  },
  peers: () => ids(node.getPeers()),
  topic_peers: ({ topic }) => ids(pubsub.getSubscribers(topic)),
  mesh: ({ topic }) => ids(pubsub.getMeshPeers(topic)),
  streams: ({ peer }) => ({
    streams: node.getConnections()
      .filter((connection) => connection.remotePeer.toString() === peer)
      .flatMap((connection) => connection.streams)
      .filter(({ protocol }) => pubsub.protocols.includes(protocol))
      .map(({ direction, protocol }) => [direction, protocol])
  }),
  serve_echo: async ({ protocols }) => {
    await node.handle(protocols, async (stream) => {
      for await (const data of stream) {
        if (!stream.send(data)) await stream.onDrain()
      }
      await stream.close()
    }, ECHO_STREAMS)
    return {}
  },
  echo: async ({ peer, protocols, streams: count, bytes }) => {
    const connection = node.getConnections().find(({ remotePeer }) => remotePeer.toString() === peer)
    const opened = await Promise.all(Array.from({ length: count }, async (_, index) => {
      const stream = await connection.newStream(protocols[index % protocols.length], ECHO_STREAMS)
      const incoming = stream[Symbol.asyncIterator]()
      return { stream, incoming, first: await isEchoed(stream, incoming, randomBytes(1)) }
    }))
    const equal = await Promise.all(opened.map(async ({ stream, incoming, first }) =>
      await isEchoed(stream, incoming, randomBytes(bytes)) && first))
    await Promise.all(opened.map(({ stream }) => stream.close()))
    return { equal: equal.filter(Boolean).length }
  },
  discovered: () => ({ addrs: [...discovered] }),
  stats: () => {
    const pages = Number(readFileSync('/proc/self/statm', 'ascii').split(' ')[1])
    const { user, system } = process.cpuUsage()
    return { rss_bytes: pages * 4096, cpu_seconds: (user + system) / 1e6 }
  }
}

emit({ event: 'ready', peer_id: node.peerId.toString(), addrs: node.getMultiaddrs().map(String) })

for await (const line of createInterface({ input: process.stdin })) {
  let cmd = null
  try {
    const request = JSON.parse(line)
    cmd = request.cmd
    if (cmd === 'exit') {
      emit({ reply: 'exit' })
      break
    }
    if (!Object.hasOwn(commands, cmd)) throw new Error(`unknown command ${cmd}`)
    emit({ reply: cmd, ...(await commands[cmd](request)) })
  } catch (error) {
    emit({ error: String(error?.message ?? error), cmd })
  }
}
process.exit(0)
