package controllers

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const (
	// What the API server said of a token is believed for so long.
	allowedFor, refusedFor = time.Minute, 10 * time.Second
	// tokensKnown is how many tokens are remembered: those who scrape are few.
	tokensKnown = 64
	// reviewTime is how long the API server may take.
	reviewTime = 10 * time.Second
)

// access lets in those of whom the API server says that they may get a path. It does
// what controller-runtime's filter does, which brings all of k8s.io/apiserver.
type access struct {
	api client.Client
	now func() time.Time

	mu    sync.Mutex
	known map[[sha256.Size]byte]review // by token and path
}

// review is what the API server said.
type review struct {
	status int // of HTTP
	until  time.Time
}

// newAccess is a FilterProvider of the metrics' server.
func newAccess(api *rest.Config, _ *http.Client) (metricsserver.Filter, error) {
	a, err := accessOf(api)
	if err != nil {
		return nil, err
	}
	return a.filter, nil
}

func accessOf(api *rest.Config) (*access, error) {
	s := runtime.NewScheme()
	if err := authenticationv1.AddToScheme(s); err != nil {
		return nil, err
	}
	if err := authorizationv1.AddToScheme(s); err != nil {
		return nil, err
	}
	m := meta.NewDefaultRESTMapper(nil)
	m.Add(authenticationv1.SchemeGroupVersion.WithKind("TokenReview"), meta.RESTScopeRoot)
	m.Add(authorizationv1.SchemeGroupVersion.WithKind("SubjectAccessReview"), meta.RESTScopeRoot)
	// A limit of its own: tokens of strangers are not to hold up the agent, nor to be
	// handed to the API server as fast as they come.
	own := rest.CopyConfig(api)
	own.QPS, own.Burst, own.RateLimiter = 5, 10, nil
	c, err := client.New(own, client.Options{Scheme: s, Mapper: m})
	if err != nil {
		return nil, err
	}
	return &access{api: c, now: time.Now, known: map[[sha256.Size]byte]review{}}, nil
}

func (a *access) filter(log logr.Logger, next http.Handler) (http.Handler, error) {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		status, err := a.ask(req)
		if err != nil && req.Context().Err() == nil { // whoever asked still waits
			log.Error(err, "the API server was not asked who may see the metrics")
		}
		if status != http.StatusOK {
			http.Error(w, http.StatusText(status), status)
			return
		}
		next.ServeHTTP(w, req)
	}), nil
}

// ask returns the status that a request gets: 200 if it may go on.
func (a *access) ask(req *http.Request) (int, error) {
	token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if token = strings.TrimSpace(token); !ok || token == "" {
		return http.StatusUnauthorized, nil
	}
	if req.Method != http.MethodGet {
		return http.StatusMethodNotAllowed, nil
	}
	key := sha256.Sum256([]byte(req.URL.Path + "\x00" + token))
	a.mu.Lock()
	r, known := a.known[key]
	a.mu.Unlock()
	if known && a.now().Before(r.until) {
		return r.status, nil
	}
	ctx, cancel := context.WithTimeout(req.Context(), reviewTime)
	defer cancel()
	status, err := a.review(ctx, token, req.URL.Path)
	if err != nil {
		return http.StatusServiceUnavailable, err
	}
	r = review{status, a.now().Add(refusedFor)}
	if status == http.StatusOK {
		r.until = a.now().Add(allowedFor)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= tokensKnown {
		clear(a.known)
	}
	a.known[key] = r
	return status, nil
}

// review asks the API server whose the token is, and whether he may get the path.
func (a *access) review(ctx context.Context, token, path string) (int, error) {
	who := authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
	if err := a.api.Create(ctx, &who); err != nil {
		return 0, fmt.Errorf("review a token: %w", err)
	}
	if !who.Status.Authenticated {
		return http.StatusUnauthorized, nil
	}
	user := who.Status.User
	may := authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: path, Verb: "get"},
		User:                  user.Username, UID: user.UID, Groups: user.Groups, Extra: map[string]authorizationv1.ExtraValue{},
	}}
	for name, values := range user.Extra {
		may.Spec.Extra[name] = authorizationv1.ExtraValue(values)
	}
	if err := a.api.Create(ctx, &may); err != nil {
		return 0, fmt.Errorf("review the access of %q to %s: %w", user.Username, path, err)
	}
	if !may.Status.Allowed {
		return http.StatusForbidden, nil
	}
	return http.StatusOK, nil
}
