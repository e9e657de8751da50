// A js-libp2p peer that speaks the protocol of bench/processes.py: quiet under load, receipts kept in memory.
// Configured as tests/interop/js/peer.mjs, defaults but for what many peers on one address need.
import { createInterface } from 'node:readline'

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
const { multiaddr } = await import('@multiformats/multiaddr')

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionManager: { inboundConnectionThreshold: 10000 }, // the default is 5 per second and host
  services: {
    identify: identify(),
    ping: ping(),
    pubsub: gossipsub({ scoreParams: { IPColocationFactorWeight: 0 } }) // all peers share 127.0.0.1
  }
})
const pubsub = node.services.pubsub
const HEADER_BYTES = 16
const receipts = new Map()
const sent = new Map()
let topic = ''

const of = (runs, run) => runs.get(run) ?? runs.set(run, []).get(run)
const micros = (from, to) => Math.floor(Number(to - from) / 1000)

pubsub.addEventListener('gossipsub:message', ({ detail: { msg } }) => {
  const now = process.hrtime.bigint()
  const header = Buffer.from(msg.data.buffer, msg.data.byteOffset, HEADER_BYTES)
  of(receipts, header.readUInt32BE(0)).push([header.readUInt32BE(4), micros(header.readBigUInt64BE(8), now)])
})

async function load ({ run, start_ns: start, size, at }) {
  const filling = Buffer.alloc(size - HEADER_BYTES)
  for (let i = 0; i < filling.length; i++) filling[i] = Math.floor(Math.random() * 256)
  const publish = async (index, due) => {
    const now = process.hrtime.bigint()
    const header = Buffer.alloc(HEADER_BYTES)
    header.writeUInt32BE(run, 0)
    header.writeUInt32BE(index, 4)
    header.writeBigUInt64BE(now, 8)
    await pubsub.publish(topic, Buffer.concat([header, filling]))
    of(sent, run).push([index, micros(due, now)])
  }
  for (const [index, offset] of at) {
    const due = BigInt(start) + BigInt(offset)
    const wait = Number(due - process.hrtime.bigint()) / 1e6
    if (wait > 0) await new Promise(resolve => setTimeout(resolve, wait))
    await publish(index, due).catch(error => console.error(String(error)))
  }
}

const take = (runs, run) => { const found = runs.get(run) ?? []; runs.delete(run); return found }
const commands = {
  dial: async ({ addr }) => { await node.dial(multiaddr(addr)); return {} },
  subscribe: command => { topic = command.topic; pubsub.subscribe(topic); return {} },
  state: () => ({
    links: node.getPeers().length,
    topic_peers: pubsub.getSubscribers(topic).length,
    mesh: pubsub.getMeshPeers(topic).length
  }),
  load: command => { load(command); return {} },
  count: ({ run }) => ({ received: of(receipts, run).length, sent: of(sent, run).length }),
  report: ({ run }) => ({ receipts: take(receipts, run), sent: take(sent, run), duplicates: null })
}

const emit = value => process.stdout.write(JSON.stringify(value) + '\n')
const listening = node.getMultiaddrs().map(String)
emit({ peer_id: node.peerId.toString(), addr: listening[0], d: pubsub.opts.D })

for await (const line of createInterface({ input: process.stdin })) {
  try {
    // start_ns is beyond 2^53: keep its digits.
    const command = JSON.parse(line.replace(/"start_ns": (\d+)/, '"start_ns": "$1"'))
    emit(await commands[command.cmd](command))
  } catch (error) {
    emit({ error: String(error?.message ?? error) })
  }
}
process.exit(0)
