// The app that the guard is tested with: it has startups and schedules. FX_CONFIG is configuration of its own.
import { start } from './start.mjs';

const config = { instance: { instances: { '': {} } }, server: { listen: { disable: false } } };
await start(['a-election', 'a-worker', 'a-queue', 'a-broadcast', 'a-startup', 'a-schedule'], {
  'a-instance': () => import('./instance.mjs'),
  'shop-rota': () => import('./rota.mjs').then(rota => rota.beans),
}, { ...config, ...JSON.parse(process.env.FX_CONFIG) });
