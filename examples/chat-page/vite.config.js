import { defineConfig } from 'vite';

// As the command line knows them. The key stays in this process; the page has none.
const { LONGHAUL_URL: target = 'http://127.0.0.1:4680', LONGHAUL_API_KEY: key } = process.env;

export default defineConfig({
  esbuild: { jsx: 'automatic' },
  optimizeDeps: { include: ['react/jsx-dev-runtime'] },
  server: {
    proxy: {
      '/api/chat': {
        target,
        changeOrigin: true,
        headers: key && { authorization: `Bearer ${key}` },
        // An answer that breaks off must do so here too: the proxy alone would leave the page waiting for the rest.
        configure: (proxy) =>
          proxy.on('proxyRes', (answer, _, page) => answer.on('close', () => answer.complete || page.destroy())),
      },
    },
  },
});
