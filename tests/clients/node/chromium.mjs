// A browser without a window.

import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import puppeteer from 'puppeteer-core';

// A tab in the background paints nothing, so that frames are no measure of time.
export const PATIENCE = { timeout: 20_000, polling: 50 };

export const launch = () => puppeteer.launch({
  executablePath: process.env.LONGHAUL_TEST_CHROMIUM,
  pipe: true, // It ends when we do, however that is.
  args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
});

export async function picture(tab, name) {
  const folder = process.env.LONGHAUL_TEST_SCREENSHOTS;
  if (!folder) return;
  await mkdir(folder, { recursive: true });
  await tab.screenshot({ path: join(folder, `${name}.png`) });
}
