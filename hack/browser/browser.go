// Package browser owns a headless Chromium for tests.
package browser

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/chromedp/chromedp"
)

var install sync.Once

// Start starts Chromium, which it installs from Debian's package if need be, and
// returns a context for chromedp. stop ends it.
func Start(ctx context.Context) (_ context.Context, stop func(), err error) {
	install.Do(func() {
		if _, e := exec.LookPath("chromium"); e == nil {
			return
		}
		cmd := exec.Command("sh", "-c", "apt-get install -y -q chromium fonts-dejavu-core || (apt-get update -q && apt-get install -y -q chromium fonts-dejavu-core)")
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, e := cmd.CombinedOutput(); e != nil {
			err = fmt.Errorf("install chromium: %w\n%s", e, out)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, nil, err
	}
	profile, err := os.MkdirTemp("", "chromium-")
	if err != nil {
		return nil, nil, err
	}
	allocator, stopAllocator := chromedp.NewExecAllocator(ctx,
		chromedp.ExecPath(path), chromedp.UserDataDir(profile), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.WSURLReadTimeout(3*time.Minute), // it starts slowly beside emulated nodes
		chromedp.NoFirstRun, chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("hide-scrollbars", true))
	ctx, stopBrowser := chromedp.NewContext(allocator)
	return ctx, func() {
		stopBrowser()
		stopAllocator()
		_ = os.RemoveAll(profile)
	}, nil
}
