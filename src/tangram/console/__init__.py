"""The console of the operator: login, live pages, and the records that they show."""
